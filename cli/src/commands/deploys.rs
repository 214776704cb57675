//! `atoll deploys`: the history of a site.

use atoll_client::manifest::{self, FileChange};
use atoll_client::{Cluster, entries};
use atoll_proto::cluster::ClusterView;
use atoll_proto::manifest::Entry;
use atoll_proto::publish::{Alias, Deploy, SiteOp};
use atoll_proto::{AliasName, SiteName};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::published::{
    DeployName, DeployText, all_deploys, deploy_url, site_and_aliases, url, wait_for,
};
use crate::args::{SiteArg, WaitArgs};
use crate::connect::Context;
use crate::report::Failure;
use crate::{table, text};

/// List the deploys of a site, latest first; show, compare or remove some
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "EXAMPLES
  atoll deploys blog
  atoll deploys blog --limit 5 --json
  atoll deploys show blog 4f1d20aa
  atoll deploys diff blog 4f1d20aa 99c0ffee"
)]
pub(crate) struct DeploysArgs {
    /// Name of the site
    #[arg(value_name = "SITE", required = true)]
    pub(crate) site: Option<SiteName>,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    #[command(subcommand)]
    pub(crate) command: Option<DeploysCommand>,
}

/// A verb on one deploy.
#[derive(Debug, Subcommand)]
pub(crate) enum DeploysCommand {
    /// Show one deploy and its files
    #[command(after_help = "EXAMPLES
  atoll deploys show blog 4f1d20aa")]
    Show(OneDeploy),
    /// Show what changed from one deploy to another
    #[command(after_help = "EXAMPLES
  atoll deploys diff blog 4f1d20aa 99c0ffee")]
    Diff(TwoDeploys),
    /// Forget a deploy that no alias points at
    #[command(after_help = "EXAMPLES
  atoll deploys rm blog 4f1d20aa")]
    Rm(RmDeploy),
}

/// A deploy of a site.
#[derive(Debug, Args)]
pub(crate) struct OneDeploy {
    #[command(flatten)]
    site: SiteArg,
    /// Id of the deploy, or its first digits
    #[arg(value_name = "ID")]
    deploy: DeployName,
}

/// A deploy that is to go.
#[derive(Debug, Args)]
pub(crate) struct RmDeploy {
    #[command(flatten)]
    one: OneDeploy,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Two deploys of a site.
#[derive(Debug, Args)]
pub(crate) struct TwoDeploys {
    #[command(flatten)]
    site: SiteArg,
    /// Id of the earlier deploy, or its first digits
    #[arg(value_name = "FROM")]
    from: DeployName,
    /// Id of the later deploy, or its first digits
    #[arg(value_name = "TO")]
    to: DeployName,
}

#[derive(Serialize)]
struct DeployObject {
    deploy: DeployText,
    created_ms: u64,
    message: String,
    files: u64,
    bytes: u64,
    seq: u64,
    aliases: Vec<AliasName>,
    /// Where it is served by itself.
    url: Option<String>,
    /// Where it is served as a preview.
    previews: Vec<PreviewObject>,
}

/// An alias that is not production.
#[derive(Serialize)]
struct PreviewObject {
    alias: AliasName,
    url: String,
    expires_ms: Option<u64>,
}

#[derive(Serialize)]
struct DeploysObject {
    site: SiteName,
    deploys: Vec<DeployObject>,
}

#[derive(Serialize)]
struct ShowObject {
    site: SiteName,
    #[serde(flatten)]
    deploy: DeployObject,
    entries: Vec<EntryObject>,
}

#[derive(Serialize)]
struct EntryObject {
    path: String,
    size: u64,
    content_type: String,
    etag: String,
}

#[derive(Serialize)]
struct DiffObject {
    site: SiteName,
    from: DeployText,
    to: DeployText,
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
    /// Whether the redirect and header rules differ.
    rules_changed: bool,
    /// Manifest pages that were read to find this out.
    pages_read: u64,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: DeploysArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match (args.command, args.site) {
        (Some(DeploysCommand::Show(one)), _) => show(context, &cluster, one).await,
        (Some(DeploysCommand::Diff(two)), _) => diff(context, &cluster, two).await,
        (Some(DeploysCommand::Rm(one)), _) => remove(context, &cluster, one).await,
        (None, Some(site)) => list(context, &cluster, site, args.limit).await,
        (None, None) => Err(Failure::Usage("name a site: atoll deploys SITE".to_owned())),
    }
}

async fn list(
    context: &Context,
    cluster: &Cluster,
    site: SiteName,
    limit: usize,
) -> Result<(), Failure> {
    let view = cluster.view().await?;
    let (_, aliases) = site_and_aliases(cluster, &site).await?;
    let mut all = all_deploys(cluster, &site).await?;
    let left_out = all.len().saturating_sub(limit);
    all.truncate(limit);
    let deploys: Vec<DeployObject> =
        all.into_iter().map(|deploy| object(&view, deploy, &aliases)).collect();
    if context.out.json() {
        return context.out.object(&DeploysObject { site, deploys });
    }
    if deploys.is_empty() {
        context.out.note(format_args!("{site} has no deploys yet"));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = deploys.into_iter().map(row).collect();
    let heading = ["deploy", "published (UTC)", ">files", ">size", "aliases", "url", "message"];
    context.out.line(table::render(&heading, &rows))?;
    if left_out > 0 {
        context.out.note(format_args!("and {left_out} earlier ones (--limit)"));
    }
    Ok(())
}

fn object(view: &ClusterView, deploy: Deploy, aliases: &[Alias]) -> DeployObject {
    let here = || aliases.iter().filter(|alias| alias.deploy == deploy.id);
    let previews = here().filter(|alias| alias.alias != AliasName::production());
    let preview = |alias: &Alias| PreviewObject {
        alias: alias.alias.clone(),
        url: url(view, &deploy.site, &alias.alias),
        expires_ms: alias.expires_ms,
    };
    DeployObject {
        url: deploy_url(view, &deploy.site, &deploy.id),
        previews: previews.map(preview).collect(),
        aliases: here().map(|alias| alias.alias.clone()).collect(),
        deploy: DeployText(deploy.id),
        created_ms: deploy.created_ms,
        message: deploy.message,
        files: deploy.files,
        bytes: deploy.bytes,
        seq: deploy.seq.0,
    }
}

fn row(deploy: DeployObject) -> Vec<String> {
    let expires = |alias: &AliasName| {
        let preview = deploy.previews.iter().find(|preview| preview.alias == *alias)?;
        preview.expires_ms.map(|at| text::expiry(Some(at)))
    };
    let named = |alias: &AliasName| match expires(alias) {
        Some(at) => format!("{alias} (until {at})"),
        None => alias.to_string(),
    };
    let aliases: Vec<String> = deploy.aliases.iter().map(named).collect();
    vec![
        text::short(&deploy.deploy.0),
        text::utc(i64::try_from(deploy.created_ms).unwrap_or(0)),
        deploy.files.to_string(),
        text::bytes(deploy.bytes),
        aliases.join(" "),
        deploy.url.unwrap_or_default(),
        text::name(deploy.message.as_bytes()),
    ]
}

async fn show(context: &Context, cluster: &Cluster, one: OneDeploy) -> Result<(), Failure> {
    let site = one.site.site;
    let id = one.deploy.find(cluster, &site).await?;
    let view = cluster.view().await?;
    let (_, aliases) = site_and_aliases(cluster, &site).await?;
    let all = all_deploys(cluster, &site).await?;
    let Some(deploy) = all.into_iter().find(|deploy| deploy.id == id) else {
        return Err(Failure::Failed(format!("{site} has no deploy {id}")));
    };
    let files = entries(cluster, id).await?;
    let deploy = object(&view, deploy, &aliases);
    if context.out.json() {
        let entries = files.iter().map(entry_object).collect();
        return context.out.object(&ShowObject { site, deploy, entries });
    }
    let heading = ["deploy", "published (UTC)", ">files", ">size", "aliases", "url", "message"];
    context.out.line(table::render(&heading, &[row(deploy)]))?;
    context.out.line("")?;
    for file in files {
        context.out.line(format_args!(
            "{:>12}  {}",
            file.size(),
            text::name(file.path.as_bytes())
        ))?;
    }
    Ok(())
}

fn entry_object(entry: &Entry) -> EntryObject {
    EntryObject {
        path: text::name(entry.path.as_bytes()),
        size: entry.size(),
        content_type: entry.content_type.clone(),
        etag: entry.content.id().to_string(),
    }
}

async fn diff(context: &Context, cluster: &Cluster, two: TwoDeploys) -> Result<(), Failure> {
    let site = two.site.site;
    let from = two.from.find(cluster, &site).await?;
    let to = two.to.find(cluster, &site).await?;
    let found = manifest::diff(cluster, from, to).await?;
    let changes: Vec<Difference> = found.files.iter().filter_map(difference).collect();
    let rules_changed = found.rules_changed;
    if context.out.json() {
        let of = |sign| changes.iter().filter(move |c| c.sign == sign).map(|c| c.path.clone());
        return context.out.object(&DiffObject {
            site,
            from: DeployText(from),
            to: DeployText(to),
            added: of(Sign::Added).collect(),
            removed: of(Sign::Removed).collect(),
            changed: of(Sign::Changed).collect(),
            rules_changed,
            pages_read: found.pages_read,
        });
    }
    for change in &changes {
        context.out.line(change.render())?;
    }
    if rules_changed {
        context.out.line("~ redirect and header rules")?;
    }
    let none = changes.is_empty() && !rules_changed;
    context.out.note(if none { "no difference".to_owned() } else { total(&changes) });
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Added,
    Removed,
    Changed,
}

/// One file that differs between two deploys.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    sign: Sign,
    path: String,
    before: u64,
    after: u64,
}

impl Difference {
    fn render(&self) -> String {
        let Self { path, before, after, .. } = self;
        match self.sign {
            Sign::Added => format!("+ {path}  ({})", text::bytes(*after)),
            Sign::Removed => format!("- {path}  ({})", text::bytes(*before)),
            Sign::Changed => {
                format!("~ {path}  ({} -> {})", text::bytes(*before), text::bytes(*after))
            }
        }
    }
}

/// What a visitor could notice of a change.
fn difference(change: &FileChange) -> Option<Difference> {
    let sign = match (&change.before, &change.after) {
        (Some(before), Some(after)) if served_alike(before, after) => return None,
        (Some(_), Some(_)) => Sign::Changed,
        (Some(_), None) => Sign::Removed,
        (None, Some(_)) => Sign::Added,
        (None, None) => return None,
    };
    let size = |entry: &Option<Entry>| entry.as_ref().map_or(0, Entry::size);
    let path = text::name(change.path().as_bytes());
    Some(Difference { sign, path, before: size(&change.before), after: size(&change.after) })
}

fn served_alike(a: &Entry, b: &Entry) -> bool {
    a.content == b.content && a.content_type == b.content_type && a.header_rule == b.header_rule
}

fn total(changes: &[Difference]) -> String {
    let of = |sign| changes.iter().filter(|change| change.sign == sign).count();
    format!(
        "{} added, {} removed, {} changed",
        of(Sign::Added),
        of(Sign::Removed),
        of(Sign::Changed)
    )
}

async fn remove(context: &Context, cluster: &Cluster, rm: RmDeploy) -> Result<(), Failure> {
    let RmDeploy { one, wait } = rm;
    let site = one.site.site;
    let deploy = one.deploy.find(cluster, &site).await?;
    let published = cluster.site(SiteOp::RemoveDeploy { site: site.clone(), deploy }).await?;
    context.out.note(format_args!("removed deploy {} of {site}", text::short(&deploy)));
    wait_for(context, cluster, &published, &wait).await
}

#[cfg(test)]
mod tests {
    use atoll_proto::content::Extent;
    use atoll_proto::{ChunkId, Content};

    use super::*;

    fn entry(path: &str, text: &str) -> Entry {
        let len = u32::try_from(text.len()).unwrap_or(0);
        let id = Some(ChunkId::of(text.as_bytes()));
        Entry {
            path: path.into(),
            mode: 0o644,
            mtime_ns: 0,
            content: Content::from_extents(vec![Extent { id, len }]),
            content_type: String::new(),
            header_rule: None,
            variants: Vec::new(),
            base: None,
        }
    }

    #[test]
    fn differences_are_found_and_rendered() {
        let change = |before: Option<Entry>, after: Option<Entry>| FileChange { before, after };
        let found = [
            change(Some(entry("a", "1")), None),
            change(Some(entry("b", "1")), Some(entry("b", "22"))),
            change(None, Some(entry("c", "1"))),
            // Only the time differs: nobody can tell.
            change(Some(entry("d", "1")), Some(Entry { mtime_ns: 5, ..entry("d", "1") })),
        ];
        let changes: Vec<Difference> = found.iter().filter_map(difference).collect();
        let lines: Vec<String> = changes.iter().map(Difference::render).collect();
        assert_eq!(lines, ["- a  (1 B)", "~ b  (1 B -> 2 B)", "+ c  (1 B)"]);
        assert_eq!(total(&changes), "1 added, 1 removed, 1 changed");
    }
}
