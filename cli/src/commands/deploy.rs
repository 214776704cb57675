//! `atoll deploy`: a directory becomes what a site serves, all at once.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atoll_client::{
    ClientError, Cluster, DeployError, DeployOptions, DeployProgress, DeployReport,
};
use atoll_proto::{AliasName, Code, DeployId, SiteName, WireError};
use clap::Args;
use serde::Serialize;

use super::published::{
    DeployName, DeployText, check_alias, deploy_url, edges_said, unconfirmed, url, waited_said,
};
use crate::args::{AliasArgs, ExpiresArgs, RuleArgs, WaitArgs};
use crate::connect::Context;
use crate::progress::Progress;
use crate::report::Failure;
use crate::scan::{ScanOptions, Scanned, scan};
use crate::text;

/// Files hashed and uploaded at the same time, when the machine does not say.
const PARALLEL: usize = 8;

/// Publish a directory as what a site serves: upload what is missing, switch over atomically, wait
/// for the edges, print the URL
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll deploy ./public --site blog --create
  atoll deploy ./public --site blog --message 'new front page'
  atoll deploy ./public --site blog --alias pr-7 --expires 7d
  atoll deploy ./public --site blog --if-current 4f1d20aa --json
  atoll deploy ./public --site blog --dry-run
  atoll deploy ./public --site blog --reupload
  atoll deploy ./public --site app --spa --html-handling drop-trailing-slash

The files _redirects and _headers at the top of DIR are rules of the site; every error in them is
told before anything is uploaded (`atoll redirects test` tries them out).

A file .atollignore (gitignore syntax) in any directory keeps files out, as do .git, .atoll and
.DS_Store always. Exit code 4: --if-current lost. 6: published, but not every edge confirmed.")]
pub(crate) struct DeployArgs {
    /// The directory with the site's files
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Which site
    #[arg(long, value_name = "SITE")]
    pub(crate) site: SiteName,
    #[command(flatten)]
    pub(crate) alias: AliasArgs,
    #[command(flatten)]
    pub(crate) expires: ExpiresArgs,
    /// What to say about it in the list of deploys
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) message: String,
    /// Only if the alias still points at this deploy ('none': at nothing), else exit code 4
    #[arg(long, value_name = "ID|none")]
    pub(crate) if_current: Option<IfCurrent>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    /// Send every chunk, also those the cluster says it has: mends what `atoll fsck` calls lost
    #[arg(long)]
    pub(crate) reupload: bool,
    /// Say what would be uploaded, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Create the site if there is none of that name
    #[arg(long)]
    pub(crate) create: bool,
    /// Keep out what fits the patterns in this file (gitignore syntax)
    #[arg(long, value_name = "FILE")]
    pub(crate) exclude_from: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// Follow symbolic links that leave DIR instead of refusing them
    #[arg(long)]
    pub(crate) follow_symlinks: bool,
}

/// What the alias must point at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IfCurrent {
    /// At nothing.
    Nothing,
    /// At this deploy.
    Deploy(DeployName),
}

impl std::str::FromStr for IfCurrent {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        if typed == "none" { Ok(Self::Nothing) } else { typed.parse().map(Self::Deploy) }
    }
}

impl IfCurrent {
    async fn find(&self, cluster: &Cluster, site: &SiteName) -> Result<Option<DeployId>, Failure> {
        match self {
            Self::Nothing => Ok(None),
            // A whole id needs no list: whether the alias points at it is the master's to say. One that
            // is not there is not what the alias points at.
            Self::Deploy(name) => match name.whole() {
                Some(id) => Ok(Some(id)),
                None => match name.find_if_any(cluster, site).await? {
                    Some(id) => Ok(Some(id)),
                    None => Err(Failure::Client(ClientError::Refused(WireError::new(
                        Code::Conflict,
                        format!(
                            "site {site} has no deploy {name} (any more): nothing points at it"
                        ),
                    )))),
                },
            },
        }
    }
}

/// The final object.
#[derive(Debug, Serialize)]
struct DoneObject {
    event: &'static str,
    site: SiteName,
    deploy: DeployText,
    alias: AliasName,
    url: String,
    /// The URL once more, of an alias that is not production.
    preview_url: Option<String>,
    /// Where this very deploy is served, whatever the alias points at later.
    deploy_url: Option<String>,
    seq: u64,
    files: u64,
    bytes: u64,
    bytes_uploaded: u64,
    chunks: u64,
    chunks_uploaded: u64,
    pages_uploaded: u64,
    edges: usize,
    edges_acked: usize,
    /// Those that have neither confirmed nor surely ended to serve what was before.
    edges_unreached: Vec<String>,
    edges_down: Vec<String>,
    elapsed_ms: ElapsedObject,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct ElapsedObject {
    scan: u64,
    upload: u64,
    commit: u64,
    wait: u64,
    total: u64,
}

/// Does it.
pub(crate) async fn run(context: &Context, args: DeployArgs) -> Result<(), Failure> {
    args.expires.check(&args.alias.alias)?;
    check_alias(&args.site, &args.alias.alias)?;
    // First what needs no cluster: a tree that cannot be deployed is told at once.
    let started = std::time::Instant::now();
    let scanned = scan_tree(context, &args).await?;
    let scan_ms = super::published::millis(started.elapsed());
    let cluster = context.cluster().await?;
    let mut report = publish(context, &cluster, &args, scanned).await?;
    report.elapsed_ms.scan += scan_ms;
    report.elapsed_ms.total += scan_ms;
    let view = cluster.view().await?;
    let url = url(&view, &args.site, &args.alias.alias);
    if context.out.json() {
        let deploy_url = deploy_url(&view, &args.site, &report.deploy);
        context.out.object(&done(&args, &report, url, deploy_url))?;
    } else {
        context.out.note(summary(&args, &report));
        if !args.dry_run {
            context.out.line(url)?;
        }
    }
    if args.dry_run { Ok(()) } else { unconfirmed(report.waiting, &args.wait) }
}

/// Finds the files.
pub(crate) async fn scan_tree(context: &Context, args: &DeployArgs) -> Result<Scanned, Failure> {
    let dir = args.dir.clone();
    let options = ScanOptions {
        exclude_from: args.exclude_from.clone(),
        follow_symlinks: args.follow_symlinks,
    };
    let scanned = atoll_net::task::spawn_blocking("scan", move || scan(&dir, &options))
        .await
        .map_err(|error| Failure::failed("scan the directory", error))??;
    for warning in &scanned.warnings {
        context.out.note(format_args!("atoll: {warning}"));
    }
    Ok(scanned)
}

/// Uploads what is missing and publishes.
pub(crate) async fn publish(
    context: &Context,
    cluster: &Cluster,
    args: &DeployArgs,
    scanned: Scanned,
) -> Result<DeployReport, Failure> {
    let if_current = match &args.if_current {
        None => None,
        Some(current) => Some(current.find(cluster, &args.site).await?),
    };
    let options = DeployOptions {
        site: args.site.clone(),
        alias: args.alias.alias.clone(),
        message: args.message.clone(),
        if_current,
        create: args.create,
        lifetime: args.expires.expires.map(|lifetime| lifetime.0),
        reupload: args.reupload,
        dry_run: args.dry_run,
        wait: args.wait.wait(),
        wait_timeout: args.wait.timeout(),
        stat_cache: stat_cache(&args.dir),
        parallel: std::thread::available_parallelism().map_or(PARALLEL, |n| n.get().max(2) * 2),
        rules: args.rules.choices(),
    };
    let progress = Arc::new(Progress::new(&context.out));
    let told: Arc<dyn DeployProgress> = progress.clone();
    let result = Box::pin(atoll_client::deploy(cluster, scanned.files, options, told)).await;
    progress.clear();
    let report = result.map_err(|error| match error {
        DeployError::Client(error) => Failure::Client(error),
        other => Failure::Deploy(other),
    })?;
    for said in waited_said(&report.down, report.unasked.as_deref()) {
        context.out.note(format_args!("atoll: {said}"));
    }
    Ok(report)
}

/// The file that remembers hashes for this directory; none when there is no home for it.
fn stat_cache(dir: &Path) -> Option<PathBuf> {
    let absolute = std::fs::canonicalize(dir).ok()?;
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    let key = blake3::hash(absolute.as_os_str().as_bytes()).to_hex();
    let cache = home.join("atoll");
    std::fs::create_dir_all(&cache).ok()?;
    Some(cache.join(format!("stat-{}", &key[..32])))
}

fn done(
    args: &DeployArgs,
    report: &DeployReport,
    url: String,
    deploy_url: Option<String>,
) -> DoneObject {
    let elapsed = report.elapsed_ms;
    let preview = args.alias.alias != AliasName::production();
    DoneObject {
        event: "done",
        site: args.site.clone(),
        deploy: DeployText(report.deploy),
        alias: args.alias.alias.clone(),
        preview_url: preview.then(|| url.clone()),
        deploy_url,
        url,
        seq: report.seq.0,
        files: report.files,
        bytes: report.bytes,
        bytes_uploaded: report.bytes_uploaded,
        chunks: report.chunks,
        chunks_uploaded: report.chunks_uploaded,
        pages_uploaded: report.pages_uploaded,
        edges: report.edges,
        edges_acked: report.edges_acked,
        edges_unreached: report.waiting.clone(),
        edges_down: report.down.clone(),
        elapsed_ms: ElapsedObject {
            scan: elapsed.scan,
            upload: elapsed.upload,
            commit: elapsed.commit,
            wait: elapsed.wait,
            total: elapsed.total,
        },
        dry_run: args.dry_run,
    }
}

/// A sentence or two for people.
pub(crate) fn summary(args: &DeployArgs, report: &DeployReport) -> String {
    let what = format!(
        "{} ({}), of which {} chunks and {} pages ({})",
        text::count(report.files, "file"),
        text::bytes(report.bytes),
        report.chunks_uploaded,
        report.pages_uploaded,
        text::bytes(report.bytes_uploaded),
    );
    let id = text::short(&report.deploy);
    if args.dry_run {
        return format!("deploy {id} would have {what} to upload; nothing was done");
    }
    format!(
        "deploy {id}: {what} uploaded; {} published in {}{}",
        args.alias.alias,
        text::duration_ms(report.elapsed_ms.total),
        edges_said(report.edges_acked, &args.wait),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> DeployArgs {
        let Command::Deploy(args) = Cli::parse_from(line.split(' ')).command else {
            panic!("not a deploy");
        };
        args
    }

    #[test]
    fn the_final_object_has_exactly_the_fields_of_the_contract() {
        let args = args("atoll deploy d --site blog");
        let object =
            serde_json::to_value(done(&args, &DeployReport::default(), "u".into(), None)).unwrap();
        let mut fields: Vec<&str> =
            object.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let mut expected = vec![
            "event",
            "site",
            "deploy",
            "alias",
            "url",
            "preview_url",
            "deploy_url",
            "seq",
            "files",
            "bytes",
            "bytes_uploaded",
            "chunks",
            "chunks_uploaded",
            "pages_uploaded",
            "edges",
            "edges_acked",
            "edges_unreached",
            "edges_down",
            "elapsed_ms",
        ];
        expected.sort_unstable();
        assert_eq!(fields, expected);
        assert_eq!(object["event"], "done");
        assert_eq!(object["alias"], "production");
        assert_eq!(object["deploy"].as_str().unwrap().len(), 64);
    }

    #[test]
    fn if_current_names_a_deploy_or_nothing() {
        let nothing = args("atoll deploy d --site s --if-current none").if_current;
        assert_eq!(nothing, Some(IfCurrent::Nothing));
        let some = args("atoll deploy d --site s --if-current 00ff00ff").if_current;
        assert!(matches!(some, Some(IfCurrent::Deploy(_))));
        assert!(Cli::try_parse_from("atoll deploy d --site s --if-current x".split(' ')).is_err());
    }
}
