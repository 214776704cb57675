//! `atoll publish`: a live site's directory is sealed and published now.

use atoll_proto::AliasName;
use atoll_proto::limits;
use atoll_proto::master::{Changed, MasterRequest, MasterResponse};
use clap::Args;

use super::published::{Concluded, conclude};
use crate::args::{SiteArg, WaitArgs};
use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Publish the directory that a live site follows, as it is now, and wait for the edges
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll publish blog
  atoll publish blog --wait none")]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    site: SiteArg,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: PublishArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let cluster = context.cluster().await?;
    let site = args.site.site;
    let request = MasterRequest::Seal { site: site.clone() };
    let answer = cluster.master(&request, limits::SEAL_DEADLINE).await?;
    let MasterResponse::Changed { reply: Changed::Site(published), .. } = answer else {
        return Err(unexpected(&site));
    };
    let alias = AliasName::production();
    let change =
        Concluded { site: &site, alias: Some(&alias), published, wait: &args.wait, started };
    conclude(context, &cluster, change, |published, edges| {
        let deploy = published.deploy.as_ref().map(text::short).unwrap_or_default();
        format!("{site} is {deploy}, as its directory is now{edges}")
    })
    .await
}
