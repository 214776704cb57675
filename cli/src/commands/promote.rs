//! `atoll promote`: an alias points at a deploy the site has, for example a preview.

use atoll_proto::publish::SiteOp;
use clap::Args;

use super::published::{Concluded, DeployName, check_alias, conclude};
use crate::args::{AliasArgs, ExpiresArgs, SiteArg, WaitArgs};
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Point a site at a deploy it has, such as one that was a preview
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll promote blog 4f1d20aa
  atoll promote blog 4f1d20aa --alias staging
  atoll promote blog 4f1d20aa --alias review --expires 12h")]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    site: SiteArg,
    /// Id of the deploy, or its first digits
    #[arg(value_name = "ID")]
    deploy: DeployName,
    #[command(flatten)]
    alias: AliasArgs,
    #[command(flatten)]
    expires: ExpiresArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: PromoteArgs) -> Result<(), Failure> {
    args.expires.check(&args.alias.alias)?;
    let started = std::time::Instant::now();
    let cluster = context.cluster().await?;
    let site = args.site.site;
    check_alias(&site, &args.alias.alias)?;
    let deploy = Some(args.deploy.find(&cluster, &site).await?);
    let alias = args.alias.alias;
    let if_current = None;
    let op = match args.expires.expires {
        None => {
            let (site, alias) = (site.clone(), alias.clone());
            SiteOp::MoveAlias { site, alias, deploy, if_current }
        }
        Some(lifetime) => {
            let (site, alias, lifetime_secs) = (site.clone(), alias.clone(), lifetime.0.as_secs());
            SiteOp::MoveAliasFor { site, alias, deploy, if_current, lifetime_secs }
        }
    };
    let published = cluster.site(op).await?;
    let change =
        Concluded { site: &site, alias: Some(&alias), published, wait: &args.wait, started };
    conclude(context, &cluster, change, |published, edges| {
        let deploy = published.deploy.as_ref().map(text::short).unwrap_or_default();
        format!("{alias} of {site} is {deploy}{edges}")
    })
    .await
}
