//! `atoll invalidate`: every edge drops cached answers; with `--erase` the bytes are gone.

mod erase;
mod holders;

use atoll_edge::http::path::{self, BadPath};
use atoll_proto::publish::{Pattern, SiteOp};
use atoll_proto::tags::check_tag;
use clap::Args;

use super::published::{Concluded, conclude};
use crate::args::{SiteArg, WaitArgs, WaitFor};
use crate::connect::Context;
use crate::report::Failure;

/// Make every edge drop its copies of files of a site. A deploy does not need this: it never serves
/// old content
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).multiple(true),
    after_help = "EXAMPLES
  atoll invalidate blog --path /index.html --path /feed.xml
  atoll invalidate blog --prefix /assets/ --soft
  atoll invalidate blog --all --wait reachable
  atoll invalidate blog --path /secret.pdf --erase

--erase is for takedowns: it takes the bytes of these files, as they are in any deploy of the site,
from every edge, every shield and every chunkserver, and waits for all of them, also for those that
are down. When anything else has the same bytes (they are shared by hash, also in parts of files),
it erases nothing and names it. With --tag, these files are those that have the tag at their own
name or clean URL in any deploy of the site; what rules rewrite to them does not count. What loses bytes is shown before it happens; --dry-run only shows.
Nobody can store them again before --unerase. It needs a token with admin and read."
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
    #[arg(long = "tag", value_name = "TAG", group = "what", value_parser = tag)]
    tags: Vec<String>,
    /// The whole site
    #[arg(long, group = "what")]
    all: bool,
    /// Drop nothing: edges have no answers that could be stale, and only count it
    #[arg(long)]
    soft: bool,
    /// Take the bytes of these files from every cache and from the store, for ever
    #[arg(long, conflicts_with = "soft")]
    erase: bool,
    /// Allow bytes again that were erased: they come back when the files are deployed again
    #[arg(long, conflicts_with_all = ["soft", "tags", "erase"])]
    unerase: bool,
    /// With --erase: also where the same bytes are in places that are not named: other paths and
    /// sites, deploys that are not published, files of the file system
    #[arg(long, requires = "erase")]
    everywhere: bool,
    /// With --erase: say what would be erased, and change nothing
    #[arg(long, requires = "erase")]
    dry_run: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// A path, or the beginning of one, as a URL has it.
fn rooted(typed: &str) -> Result<String, String> {
    if !typed.starts_with('/') {
        return Err("it must start with '/', as the path of a URL does".to_owned());
    }
    if typed.contains(['?', '#']) {
        let why = "give the path of the URL alone; a '?' in a file's name is '%3F', a '#' is '%23'";
        return Err(why.to_owned());
    }
    match path::parse(typed.as_bytes()) {
        Err(BadPath::Malformed(why)) => Err(format!("{why}; a '%' in a file's name is '%25'")),
        // Longer than any file's: it names none.
        Ok(_) | Err(BadPath::Impossible) => Ok(typed.to_owned()),
    }
}

fn tag(typed: &str) -> Result<String, String> {
    check_tag(typed).map(|()| typed.to_owned())
}

/// Does it.
pub(crate) async fn run(context: &Context, args: InvalidateArgs) -> Result<(), Failure> {
    let started = std::time::Instant::now();
    let site = args.site.site;
    let mut patterns: Vec<Pattern> = args.paths.into_iter().map(Pattern::Path).collect();
    patterns.extend(args.prefixes.into_iter().map(Pattern::Prefix));
    patterns.extend(args.tags.into_iter().map(Pattern::Tag));
    patterns.extend(args.all.then_some(Pattern::All));
    if args.erase || args.unerase {
        if args.wait.wait != WaitFor::All {
            let why = "an erasure waits for everybody: leave --wait out, and give a --timeout";
            return Err(Failure::Usage(why.to_owned()));
        }
        let (everywhere, dry_run) = (args.everywhere, args.dry_run);
        let timeout = args.wait.timeout();
        let asked = erase::Asked { site, patterns, everywhere, dry_run, timeout };
        return match args.erase {
            true => erase::erase(context, asked).await,
            false => erase::unerase(context, asked).await,
        };
    }
    let cluster = context.cluster().await?;
    let published =
        cluster.site(SiteOp::Invalidate { site: site.clone(), patterns, soft: args.soft }).await?;
    let change = Concluded { site: &site, alias: None, published, wait: &args.wait, started };
    conclude(context, &cluster, change, |_, edges| format!("invalidated {site}{edges}")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_path_of_a_url_is_refused() {
        for fine in ["/", "/my%20docs/", "/a//b", "/100%25.txt", "/é"] {
            assert_eq!(rooted(fine).as_deref(), Ok(fine));
        }
        for (bad, why) in [
            ("a", "start with"),
            ("/100%.txt", "%25"),
            ("/a%zz", "%25"),
            ("/a?x=1", "%3F"),
            ("/a#b", "%23"),
            ("/a/../b", ".."),
            ("/a%00", "NUL"),
        ] {
            assert!(rooted(bad).is_err_and(|told| told.contains(why)), "{bad}");
        }
    }
}
