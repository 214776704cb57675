//! `atoll invalidate`: every edge drops cached answers.

use atoll_proto::publish::{Pattern, SiteOp};
use clap::Args;

use super::published::{Concluded, conclude};
use crate::args::{SiteArg, WaitArgs};
use crate::connect::Context;
use crate::report::Failure;

/// Make every edge drop (or with --soft revalidate) cached answers of a site. A deploy does not
/// need this: it never serves old content
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).multiple(true),
    after_help = "EXAMPLES
  atoll invalidate blog --path /index.html --path /feed.xml
  atoll invalidate blog --prefix /assets/ --soft
  atoll invalidate blog --all --wait reachable"
)]
pub(crate) struct InvalidateArgs {
    #[command(flatten)]
    site: SiteArg,
    /// Exactly this path
    #[arg(long = "path", value_name = "PATH", group = "what", value_parser = rooted)]
    paths: Vec<String>,
    /// Every path that starts with this
    #[arg(long = "prefix", value_name = "PREFIX", group = "what", value_parser = rooted)]
    prefixes: Vec<String>,
    /// Everything with this cache tag
    #[arg(long = "tag", value_name = "TAG", group = "what")]
    tags: Vec<String>,
    /// The whole site
    #[arg(long, group = "what")]
    all: bool,
    /// Revalidate instead of drop
    #[arg(long)]
    soft: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

fn rooted(typed: &str) -> Result<String, String> {
    if typed.starts_with('/') {
        Ok(typed.to_owned())
    } else {
        Err("it must start with '/', as the path of a URL does".to_owned())
    }
}

/// Does it.
pub(crate) async fn run(context: &Context, args: InvalidateArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let cluster = context.cluster().await?;
    let site = args.site.site;
    let mut patterns: Vec<Pattern> = args.paths.into_iter().map(Pattern::Path).collect();
    patterns.extend(args.prefixes.into_iter().map(Pattern::Prefix));
    patterns.extend(args.tags.into_iter().map(Pattern::Tag));
    patterns.extend(args.all.then_some(Pattern::All));
    let published =
        cluster.site(SiteOp::Invalidate { site: site.clone(), patterns, soft: args.soft }).await?;
    let change = Concluded { site: &site, alias: None, published, wait: &args.wait, started };
    conclude(context, &cluster, change, |_, edges| format!("invalidated {site}{edges}")).await
}
