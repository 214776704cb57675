//! `atoll site`: sites and their own host names.

use atoll_client::RuleChoices;
use atoll_proto::SiteName;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{Alias, Site, SiteOp, check_domain};
use atoll_proto::site::{Policy, SiteChanges, SiteSettings};
use atoll_proto::{AliasName, limits};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::published::{DeployText, site_and_aliases, url, wait_for};
use crate::args::{RuleArgs, SiteArg, WaitArgs};
use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;
use crate::{table, text};

/// Create, list and change sites
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll site create blog
  atoll site ls")]
pub(crate) enum SiteCommand {
    /// Create a site
    #[command(after_help = "EXAMPLES
  atoll site create blog
  atoll site create shop --domain shop.example --domain www.shop.example
  atoll site create notes --live /sites/notes --policy available
  atoll site create app --spa --html-handling drop-trailing-slash")]
    Create(SiteConfig),
    /// List all sites
    #[command(after_help = "EXAMPLES
  atoll site ls
  atoll site ls --json")]
    Ls,
    /// Show one site: host names, aliases, URLs
    #[command(after_help = "EXAMPLES
  atoll site show blog")]
    Show(SiteArg),
    /// Change what is named of a site's configuration, and leave the rest
    #[command(after_help = "EXAMPLES
  atoll site set blog --domain blog.example --domain www.blog.example
  atoll site set blog --no-domains
  atoll site set blog --policy bounded=300 --earlier-count 20 --earlier-days 30
  atoll site set blog --dialect pages --html-handling auto-trailing-slash

What says how rules are read (--dialect, --html-handling, --spa) is part of each deploy: a change
takes effect with the next deploy, and for a site that follows a directory at once.")]
    Set(SetConfig),
    /// Remove a site with its aliases and deploys
    #[command(after_help = "EXAMPLES
  atoll site rm blog")]
    Rm(RmSite),
}

/// A site and what its owner chooses.
#[derive(Debug, Args)]
pub(crate) struct SiteConfig {
    /// Name of the site: 1 to 63 of a-z, 0-9 and '-'
    #[arg(value_name = "SITE")]
    site: SiteName,
    #[command(flatten)]
    choices: Choices,
}

/// A site that is to go.
#[derive(Debug, Args)]
pub(crate) struct RmSite {
    #[command(flatten)]
    site: SiteArg,
    #[command(flatten)]
    wait: WaitArgs,
}

/// A site and what is to change.
#[derive(Debug, Args)]
pub(crate) struct SetConfig {
    #[command(flatten)]
    config: SiteConfig,
    /// Take all host names of its own away
    #[arg(long, conflicts_with = "domains")]
    no_domains: bool,
    /// Follow no directory any more
    #[arg(long, conflicts_with = "live")]
    no_live: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What its owner chooses; what is not given stays as it is, or gets its default.
#[derive(Debug, Args)]
struct Choices {
    /// A host name of its own, beside <site>.<zone>; may be given several times; all of them are
    /// replaced
    #[arg(long = "domain", value_name = "HOST", value_parser = domain)]
    domains: Vec<String>,
    /// What an edge does once its lease has ended, because it has lost touch with the masters:
    /// `strict` answers 503, `bounded=SECS` serves on for so long, `available` serves on
    /// [default: strict]
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    #[command(flatten)]
    rules: RuleArgs,
    /// Files of so many earlier deploys stay reachable; 0 for none [default: 10]
    #[arg(long, value_name = "N")]
    earlier_count: Option<u32>,
    /// ... for so many days after another deploy took their place [default: 7]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(..=3650))]
    earlier_days: Option<u32>,
    /// The directory of the cluster's file system that the site follows
    #[arg(long, value_name = "PATH")]
    live: Option<String>,
}

impl Choices {
    fn changes(self) -> SiteChanges {
        let RuleChoices { dialect, html_handling, spa } = self.rules.choices();
        SiteChanges {
            domains: (!self.domains.is_empty()).then_some(self.domains),
            policy: self.policy,
            dialect,
            html_handling,
            spa,
            earlier_count: self.earlier_count,
            earlier_age_secs: self.earlier_days.map(|days| days * 24 * 3600),
            live: self.live.map(Some),
        }
    }
}

impl SetConfig {
    fn changes(self) -> SiteChanges {
        let mut changes = self.config.choices.changes();
        if self.no_domains {
            changes.domains = Some(Vec::new());
        }
        if self.no_live {
            changes.live = Some(None);
        }
        changes
    }
}

fn domain(typed: &str) -> Result<String, String> {
    let name = typed.trim_end_matches('.').to_ascii_lowercase();
    check_domain(&name)?;
    Ok(name)
}

/// A site, for programs.
#[derive(Serialize)]
struct SiteObject {
    site: SiteName,
    domains: Vec<String>,
    created_ms: u64,
    policy: String,
    dialect: String,
    html_handling: String,
    spa: bool,
    earlier_count: u32,
    earlier_age_secs: u32,
    live: Option<String>,
    url: String,
    aliases: Vec<AliasObject>,
}

#[derive(Serialize)]
struct AliasObject {
    alias: AliasName,
    deploy: DeployText,
    url: String,
    seq: u64,
    at_ms: u64,
    /// When the alias is removed.
    expires_ms: Option<u64>,
    /// Where it pointed before, latest first: files of these stay reachable.
    earlier: Vec<DeployText>,
}

#[derive(Serialize)]
struct SitesObject {
    sites: Vec<SiteObject>,
}

/// Does it.
pub(crate) async fn run(context: &Context, command: SiteCommand) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match command {
        SiteCommand::Create(SiteConfig { site, choices }) => {
            let changes = choices.changes();
            let settings = changes.apply(&SiteSettings::default());
            settings.check().map_err(Failure::Usage)?;
            let domains = changes.domains.unwrap_or_default();
            cluster.site(SiteOp::CreateWith { site: site.clone(), domains, settings }).await?;
            shown(context, &cluster, &site).await
        }
        SiteCommand::Set(set) => {
            let (site, wait) = (set.config.site.clone(), set.wait.clone());
            let changes = set.changes();
            if changes.is_empty() {
                return Err(Failure::Usage("name what to change: `atoll site set --help`".into()));
            }
            let published = cluster.site(SiteOp::Configure { site: site.clone(), changes }).await?;
            shown(context, &cluster, &site).await?;
            wait_for(context, &cluster, &published, &wait).await
        }
        SiteCommand::Show(SiteArg { site }) => shown(context, &cluster, &site).await,
        SiteCommand::Rm(RmSite { site: SiteArg { site }, wait }) => {
            let published = cluster.site(SiteOp::Remove { site: site.clone() }).await?;
            context.out.note(format_args!("removed site {site}"));
            wait_for(context, &cluster, &published, &wait).await
        }
        SiteCommand::Ls => list(context, &cluster).await,
    }
}

async fn list(context: &Context, cluster: &atoll_client::Cluster) -> Result<(), Failure> {
    let view = cluster.view().await?;
    let answer = cluster.master(&MasterRequest::Sites, limits::METADATA_DEADLINE).await?;
    let MasterResponse::Sites(sites) = answer else {
        return Err(unexpected("sites"));
    };
    let sites: Vec<SiteObject> =
        sites.into_iter().map(|(site, aliases)| object(&view, site, aliases)).collect();
    if context.out.json() {
        return context.out.object(&SitesObject { sites });
    }
    if sites.is_empty() {
        context.out.note("there are no sites yet; `atoll site create NAME` makes one");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = sites
        .into_iter()
        .map(|site| {
            let current = site.aliases.iter().find(|a| a.alias == AliasName::production());
            let current = current.map_or("-".to_owned(), |alias| text::short(&alias.deploy.0));
            vec![site.site.to_string(), current, site.url, site.domains.join(" ")]
        })
        .collect();
    context.out.line(table::render(&["site", "production", "url", "domains"], &rows))
}

async fn shown(
    context: &Context,
    cluster: &atoll_client::Cluster,
    site: &SiteName,
) -> Result<(), Failure> {
    let view = cluster.view().await?;
    let (site, aliases) = site_and_aliases(cluster, site).await?;
    let site = object(&view, site, aliases);
    if context.out.json() {
        return context.out.object(&site);
    }
    let out = &context.out;
    out.line(format_args!("site     {}", site.site))?;
    out.line(format_args!("url      {}", site.url))?;
    out.line(format_args!("created  {}", text::utc(i64::try_from(site.created_ms).unwrap_or(0))))?;
    if !site.domains.is_empty() {
        out.line(format_args!("domains  {}", site.domains.join(" ")))?;
    }
    if let Some(live) = &site.live {
        out.line(format_args!("live     {live}"))?;
    }
    out.line(format_args!("policy   {}", site.policy))?;
    let spa = if site.spa { ", a single-page application" } else { "" };
    out.line(format_args!("rules    {}, {}{spa}", site.dialect, site.html_handling))?;
    out.line(format_args!(
        "earlier  files of {} deploys, for {}",
        site.earlier_count,
        text::days(site.earlier_age_secs)
    ))?;
    let rows: Vec<Vec<String>> = site
        .aliases
        .into_iter()
        .map(|alias| {
            let at = text::utc(i64::try_from(alias.at_ms).unwrap_or(0));
            let expires = text::expiry(alias.expires_ms);
            vec![alias.alias.to_string(), text::short(&alias.deploy.0), at, expires, alias.url]
        })
        .collect();
    if rows.is_empty() {
        out.note("nothing is deployed yet");
        return Ok(());
    }
    out.line("")?;
    out.line(table::render(&["alias", "deploy", "since (UTC)", "expires (UTC)", "url"], &rows))
}

fn object(view: &atoll_proto::cluster::ClusterView, site: Site, aliases: Vec<Alias>) -> SiteObject {
    let aliases = aliases
        .into_iter()
        .map(|alias| AliasObject {
            url: url(view, &site.name, &alias.alias),
            alias: alias.alias,
            deploy: DeployText(alias.deploy),
            seq: alias.seq.0,
            at_ms: alias.at_ms,
            expires_ms: alias.expires_ms,
            earlier: alias.earlier.iter().map(|earlier| DeployText(earlier.deploy)).collect(),
        })
        .collect();
    SiteObject {
        url: url(view, &site.name, &AliasName::production()),
        site: site.name,
        domains: site.domains,
        created_ms: site.created_ms,
        policy: site.settings.policy.to_string(),
        dialect: site.settings.dialect.to_string(),
        html_handling: site.settings.html_handling.to_string(),
        spa: site.settings.spa,
        earlier_count: site.settings.earlier.count,
        earlier_age_secs: site.settings.earlier.age_secs,
        live: site.settings.live,
        aliases,
    }
}
