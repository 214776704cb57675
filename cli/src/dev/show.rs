//! What `atoll dev` tells its user: where everything is, and the site it was started with.

use std::path::Path;
use std::time::Duration;

use atoll_client::Cluster;
use atoll_proto::AliasName;

use super::layout::Layout;
use super::plan::site_name;
use super::ready::ReadyObject;
use crate::args::{AliasArgs, ExpiresArgs, RuleArgs, WaitArgs, WaitFor};
use crate::commands::deploy::{DeployArgs, publish, scan_tree, summary as deploy_summary};
use crate::commands::published::url;
use crate::connect::Context;
use crate::report::Failure;
use crate::text;

/// Deploys a directory as a site of the same name; returns its URL.
pub(crate) async fn deploy(
    context: &Context,
    cluster: &Cluster,
    dir: &Path,
) -> Result<String, Failure> {
    let real = std::fs::canonicalize(dir).map_err(Failure::file("read", dir))?;
    let name = real.file_name().map(|name| name.to_string_lossy().into_owned());
    let site = site_name(&name.unwrap_or_default())
        .parse()
        .map_err(|error| Failure::failed("name the site", error))?;
    let args = DeployArgs {
        dir: dir.to_owned(),
        site,
        alias: AliasArgs { alias: AliasName::production() },
        message: String::new(),
        if_current: None,
        expires: ExpiresArgs { expires: None },
        wait: WaitArgs { wait: WaitFor::All, timeout: 60 },
        reupload: false,
        dry_run: false,
        create: true,
        exclude_from: None,
        rules: RuleArgs::default(),
        follow_symlinks: false,
    };
    let scanned = scan_tree(context, &args).await?;
    let report = publish(context, cluster, &args, scanned).await?;
    context.out.note(deploy_summary(&args, &report));
    Ok(url(&*cluster.view().await?, &args.site, &args.alias.alias))
}

/// Says where everything is.
pub(crate) fn summary(
    context: &Context,
    layout: &Layout,
    ready: &ReadyObject,
    site: Option<&str>,
    took: Duration,
) -> Result<(), Failure> {
    let out = &context.out;
    if out.json() {
        return out.object(ready);
    }
    let took = text::duration_ms(crate::commands::published::millis(took));
    out.line(format_args!("the cluster serves, after {took}"))?;
    if let Some(url) = site {
        out.line(format_args!("  site      {url}"))?;
    }
    for edge in ready.edges.iter().filter(|edge| edge.is_visited()) {
        out.line(format_args!("  {:<9} https://<site>.localhost:{}/", edge.name(), edge.port()))?;
    }
    for dns in &ready.dns {
        out.line(format_args!("  dns       {} for {}", dns.addr(), super::ZONE))?;
    }
    if let Some(mount) = &ready.mount {
        out.line(format_args!("  mount     {}", mount.display()))?;
    }
    out.line(format_args!("  config    {}", ready.config.display()))?;
    out.line(format_args!("  authority {}", ready.ca.display()))?;
    out.line(format_args!("  logs      {}", layout.data().join("logs").display()))?;
    out.line("")?;
    out.line(format_args!("  export ATOLL_CONFIG={}", ready.config.display()))?;
    out.line("  atoll deploy ./public --site blog --create")?;
    out.line("  atoll status")?;
    out.line("")?;
    out.line("Ctrl-C stops it; the next start on the same --data resumes it.")?;
    out.flush()
}
