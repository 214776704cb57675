//! `atoll rollback`: an alias points at an earlier deploy again.

use atoll_proto::publish::SiteOp;
use clap::Args;

use super::published::{Concluded, DeployName, conclude};
use crate::args::{AliasArgs, SiteArg, WaitArgs};
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Point a site back at the deploy before the current one, or at a given one
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll rollback blog
  atoll rollback blog 4f1d20aa
  atoll rollback blog --alias pr-7 --wait none")]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    site: SiteArg,
    /// Id of the deploy, or its first digits; without it the one before the current one
    #[arg(value_name = "ID")]
    deploy: Option<DeployName>,
    #[command(flatten)]
    alias: AliasArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: RollbackArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let cluster = context.cluster().await?;
    let site = args.site.site;
    let deploy = match &args.deploy {
        Some(name) => Some(name.find(&cluster, &site).await?),
        None => None,
    };
    let alias = args.alias.alias;
    let op =
        SiteOp::MoveAlias { site: site.clone(), alias: alias.clone(), deploy, if_current: None };
    let published = cluster.site(op).await?;
    let change =
        Concluded { site: &site, alias: Some(&alias), published, wait: &args.wait, started };
    conclude(context, &cluster, change, |published, edges| {
        let deploy = published.deploy.as_ref().map(text::short).unwrap_or_default();
        format!("{alias} of {site} is back at {deploy}{edges}")
    })
    .await
}
