//! `atoll site`: sites and their own host names.

use atoll_proto::SiteName;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{Alias, Site, SiteOp, check_domain};
use atoll_proto::{AliasName, limits};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::published::{DeployText, site_and_aliases, url};
use crate::args::SiteArg;
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
  atoll site create shop --domain shop.example --domain www.shop.example")]
    Create(SiteDomains),
    /// List all sites
    #[command(after_help = "EXAMPLES
  atoll site ls
  atoll site ls --json")]
    Ls,
    /// Show one site: host names, aliases, URLs
    #[command(after_help = "EXAMPLES
  atoll site show blog")]
    Show(SiteArg),
    /// Replace the host names of a site
    #[command(after_help = "EXAMPLES
  atoll site set blog --domain blog.example
  atoll site set blog")]
    Set(SiteDomains),
    /// Remove a site with its aliases and deploys
    #[command(after_help = "EXAMPLES
  atoll site rm blog")]
    Rm(SiteArg),
}

/// A site and its own host names.
#[derive(Debug, Args)]
pub(crate) struct SiteDomains {
    /// Name of the site: 1 to 63 of a-z, 0-9 and '-'
    #[arg(value_name = "SITE")]
    site: SiteName,
    /// A host name of its own, beside <site>.<zone>; may be given several times
    #[arg(long = "domain", value_name = "HOST", value_parser = domain)]
    domains: Vec<String>,
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
}

#[derive(Serialize)]
struct SitesObject {
    sites: Vec<SiteObject>,
}

/// Does it.
pub(crate) async fn run(context: &Context, command: SiteCommand) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match command {
        SiteCommand::Create(SiteDomains { site, domains }) => {
            cluster.site(SiteOp::Create { site: site.clone(), domains }).await?;
            shown(context, &cluster, &site).await
        }
        SiteCommand::Set(SiteDomains { site, domains }) => {
            cluster.site(SiteOp::SetDomains { site: site.clone(), domains }).await?;
            shown(context, &cluster, &site).await
        }
        SiteCommand::Show(SiteArg { site }) => shown(context, &cluster, &site).await,
        SiteCommand::Rm(SiteArg { site }) => {
            cluster.site(SiteOp::Remove { site: site.clone() }).await?;
            context.out.note(format_args!("removed site {site}"));
            Ok(())
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
    let rows: Vec<Vec<String>> = site
        .aliases
        .into_iter()
        .map(|alias| {
            let at = text::utc(i64::try_from(alias.at_ms).unwrap_or(0));
            vec![alias.alias.to_string(), text::short(&alias.deploy.0), at, alias.url]
        })
        .collect();
    if rows.is_empty() {
        out.note("nothing is deployed yet");
        return Ok(());
    }
    out.line("")?;
    out.line(table::render(&["alias", "deploy", "since (UTC)", "url"], &rows))
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
        })
        .collect();
    SiteObject {
        url: url(view, &site.name, &AliasName::production()),
        site: site.name,
        domains: site.domains,
        created_ms: site.created_ms,
        aliases,
    }
}
