//! `atoll master`, `atoll chunkserver`, `atoll edge`: one node of a cluster, in the foreground.

use std::fmt::Display;
use std::path::PathBuf;

use atoll_net::Shutdown;
use clap::Args;

use crate::connect::Context;
use crate::lifeline;
use crate::report::Failure;

/// Run a master: it holds the metadata. Needs --config FILE
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll master --config /etc/atoll/master.toml

`atoll init` writes such a file.")]
pub(crate) struct MasterArgs {
    #[command(flatten)]
    shared: RoleArgs,
}

/// Run a chunkserver: it holds the bytes. Needs --config FILE
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll chunkserver --config /etc/atoll/chunkserver.toml

`atoll init` writes such a file.")]
pub(crate) struct ChunkserverArgs {
    #[command(flatten)]
    shared: RoleArgs,
}

/// Run an edge: it serves visitors, is a shield, answers DNS, or any of these. Needs --config FILE
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll edge --config /etc/atoll/edge.toml
  atoll edge --config /etc/atoll/edge.toml --mmdb /var/lib/geo/city.mmdb

`atoll init` writes such a file.")]
pub(crate) struct EdgeArgs {
    #[command(flatten)]
    shared: RoleArgs,
    /// Geographic database for DNS in MaxMind's format, before those of the configuration; may be
    /// given several times. The file may be replaced while the edge runs
    #[arg(long, value_name = "FILE")]
    mmdb: Vec<PathBuf>,
}

#[derive(Debug, Args)]
struct RoleArgs {
    /// End with the standard input: for `atoll dev`
    #[arg(long, hide = true)]
    lifeline: bool,
}

impl RoleArgs {
    /// The configuration file's path, and what tells the role to stop.
    fn begin(&self, context: &Context, role: &str) -> Result<(PathBuf, Shutdown), Failure> {
        let Some(config) = context.config.clone() else {
            return Err(Failure::Usage(format!(
                "atoll {role} needs its configuration: atoll {role} --config FILE"
            )));
        };
        if self.lifeline {
            lifeline::hold().map_err(|error| Failure::failed("watch the parent process", error))?;
        }
        drop(atoll_net::telemetry::init(role, "info"));
        Ok((config, atoll_net::shutdown::on_signals()))
    }
}

fn said(error: impl Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// Runs a master.
pub(crate) async fn master(context: &Context, args: MasterArgs) -> Result<(), Failure> {
    let (config, shutdown) = args.shared.begin(context, "master")?;
    let config = atoll_master::Config::load(&config).map_err(said)?;
    atoll_master::run(config, shutdown).await.map_err(said)
}

/// Runs a chunkserver.
pub(crate) async fn chunkserver(context: &Context, args: ChunkserverArgs) -> Result<(), Failure> {
    let (config, shutdown) = args.shared.begin(context, "chunkserver")?;
    let config = atoll_chunkserver::Config::load(&config).map_err(said)?;
    atoll_chunkserver::run(config, shutdown).await.map_err(said)
}

/// Runs an edge.
pub(crate) async fn edge(context: &Context, args: EdgeArgs) -> Result<(), Failure> {
    let (config, shutdown) = args.shared.begin(context, "edge")?;
    let mut config = atoll_edge::Config::load(&config).map_err(said)?;
    if !args.mmdb.is_empty() {
        let Some(dns) = &mut config.dns else {
            let message = "--mmdb is for edges that answer DNS: this one has no [dns] section";
            return Err(Failure::Usage(message.to_owned()));
        };
        // Before those of the file; what it yields are the ones replaced, none.
        drop(dns.mmdb.splice(..0, args.mmdb));
    }
    atoll_edge::run(config, shutdown).await.map_err(said)
}
