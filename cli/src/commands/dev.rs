//! `atoll dev`: a whole cluster on this machine, and one process of it stopped or started.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::connect::Context;
use crate::dev;
use crate::dev::control::{Order, send};
use crate::dev::layout::Layout;
use crate::dev::plan::{Kind, NODES_MAX, NodeName, Wanted};
use crate::report::Failure;

/// Where a local cluster is kept.
const DATA: &str = ".atoll";

/// Run a whole cluster on this machine until Ctrl-C. A second start on the same data resumes it
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "EXAMPLES
  atoll dev
  atoll dev ./public --edges 3
  atoll dev --data ./lagoon --mount ./mnt --ready ./ready.json
  atoll dev stop chunkserver 2 --kill
  atoll dev start chunkserver 2
  atoll dev add chunkserver --zone z4
  atoll dev add master"
)]
pub(crate) struct DevArgs {
    /// A directory to deploy once the cluster is up, as a site of the same name
    #[arg(value_name = "SITE_DIR")]
    pub(crate) site_dir: Option<PathBuf>,
    /// Where everything is kept
    #[arg(long, value_name = "DIR", default_value = DATA)]
    pub(crate) data: PathBuf,
    /// How many masters: 1, 3 or 5 [default: 1]
    #[arg(long, value_name = "N", value_parser = masters)]
    pub(crate) masters: Option<u16>,
    /// How many chunkservers [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    pub(crate) chunkservers: Option<u16>,
    /// How many edges [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=i64::from(NODES_MAX)))]
    pub(crate) edges: Option<u16>,
    /// How many shields [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=i64::from(NODES_MAX)))]
    pub(crate) shields: Option<u16>,
    /// Mount the cluster's file system there
    #[arg(long, value_name = "DIR")]
    pub(crate) mount: Option<PathBuf>,
    /// Write where everything is, once everything serves
    #[arg(long, value_name = "FILE")]
    pub(crate) ready: Option<PathBuf>,
    /// Give ports from this one upwards, instead of free ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port_base: Option<u16>,
    /// Start a process again when it ends by itself
    #[arg(long)]
    pub(crate) restart: bool,
    #[command(subcommand)]
    pub(crate) command: Option<DevCommand>,
}

impl DevArgs {
    /// How many processes of each kind were asked for.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            masters: self.masters,
            chunkservers: self.chunkservers,
            edges: self.edges,
            shields: self.shields,
        }
    }
}

/// One process of the cluster that `atoll dev` runs in another terminal.
#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// Start a process again, on its data and ports
    #[command(after_help = "EXAMPLES
  atoll dev start chunkserver 2
  atoll dev start edge 1 --data ./lagoon")]
    Start(OneNode),
    /// Stop a process
    #[command(after_help = "EXAMPLES
  atoll dev stop chunkserver 2
  atoll dev stop edge 1 --kill --data ./lagoon")]
    Stop(StopArgs),
    /// Add a chunkserver, which gets its share of the data, or a master, which gets a vote
    #[command(after_help = "EXAMPLES
  atoll dev add chunkserver
  atoll dev add master
  atoll dev add chunkserver --zone z4 --data ./lagoon

It is started again with the others from now on. `atoll node ls` shows how it fills.")]
    Add(AddArgs),
    /// Stop a chunkserver or a master and never start it again; its id is not used a second time
    #[command(after_help = "EXAMPLES
  atoll dev rm chunkserver 4
  atoll dev rm master 2

A master leaves the others first. For a chunkserver: first let the cluster do without it: `atoll node drain chunkserver-4 --wait`, then
`atoll node rm chunkserver-4`.")]
    Rm(OneNode),
}

/// What can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Addition {
    /// Chunks
    Chunkserver,
    /// Metadata
    Master,
}

/// What to add.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// What it does
    #[arg(value_enum, value_name = "ROLE")]
    role: Addition,
    /// Its failure domain [default: z1, z2 and z3 in turn]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Where the cluster is kept
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
}

/// Which process.
#[derive(Debug, Args)]
pub(crate) struct OneNode {
    /// What it does
    #[arg(value_enum, value_name = "ROLE")]
    role: Kind,
    /// Its number, from 1
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    id: u16,
    /// Where the cluster is kept
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
}

/// Which process, and how.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    node: OneNode,
    /// With SIGKILL instead of SIGTERM
    #[arg(long)]
    kill: bool,
}

fn masters(typed: &str) -> Result<u16, String> {
    match typed {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("1, 3 or 5: a majority must be able to decide".to_owned()),
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, mut args: DevArgs) -> Result<(), Failure> {
    let (data, order) = match args.command.take() {
        None => return Box::pin(dev::run(context, args)).await,
        Some(DevCommand::Start(node)) => (node.data.clone(), Order::Start { name: node.name() }),
        Some(DevCommand::Stop(StopArgs { node, kill })) => {
            (node.data.clone(), Order::Stop { name: node.name(), kill })
        }
        Some(DevCommand::Add(AddArgs { role: Addition::Chunkserver, zone, data })) => {
            (data, Order::Add { zone })
        }
        Some(DevCommand::Add(AddArgs { role: Addition::Master, zone: None, data })) => {
            (data, Order::AddMaster)
        }
        Some(DevCommand::Add(AddArgs { role: Addition::Master, zone: Some(_), .. })) => {
            return Err(Failure::Usage("masters have no --zone".to_owned()));
        }
        Some(DevCommand::Rm(node)) => (node.data.clone(), Order::Forget { name: node.name() }),
    };
    let said = send(&Layout::new(&data)?, &order).await?;
    context.out.note(said);
    Ok(())
}

impl OneNode {
    fn name(&self) -> String {
        NodeName { kind: self.role, number: self.id }.to_string()
    }
}
