//! Changes of sites, aliases and deploys. Every one is an entry of the publish log, which the
//! edges follow. Applied by the state machine; the leader's side is [`crate::ops::change`].

mod earlier;
mod erase;
mod expiry;
mod invalidate;
mod move_alias;
mod publish;
mod remove_deploy;
mod seal;
mod sites;
#[cfg(test)]
mod tests;

use atoll_proto::publish::{Alias, Earlier, PublishEvent, Published, Site, SiteOp};
use atoll_proto::site::{SiteChanges, SiteSettings};
use atoll_proto::{AliasName, Code, DeployId, Seq, SiteName, WireError};

use crate::operation::{Apply, Now, RootFacts};
use crate::store::aliases::{self, AliasRecord};
use crate::store::{Read, Transaction, publish_log};

pub(crate) use expiry::expire;
pub(crate) use publish::check_message;
pub(crate) use seal::seal;

/// Carries out a change. `root` is what the leader read in the root page of a publish.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    op: SiteOp,
    root: Option<RootFacts>,
) -> Apply<Published> {
    match op {
        SiteOp::Create { site, domains } => {
            sites::create(tx, now, site, domains, SiteSettings::default())
        }
        SiteOp::CreateWith { site, domains, settings } => {
            sites::create(tx, now, site, domains, settings)
        }
        SiteOp::Configure { site, changes } => sites::configure(tx, now, &site, &changes),
        SiteOp::SetDomains { site, domains } => {
            let changes = SiteChanges { domains: Some(domains), ..SiteChanges::default() };
            sites::configure(tx, now, &site, &changes)
        }
        SiteOp::Remove { site } => sites::remove(tx, now, &site),
        SiteOp::Publish { site, alias, deploy, if_current, message, create } => {
            let request = publish::Publish { site, alias, deploy, if_current, message, create };
            publish::publish_whole(tx, now, request, root, None)
        }
        SiteOp::PublishFor { site, alias, deploy, if_current, message, create, lifetime_secs } => {
            let expires_ms = expiry::expires_ms(now, &alias, lifetime_secs)?;
            let request = publish::Publish { site, alias, deploy, if_current, message, create };
            publish::publish_whole(tx, now, request, root, Some(expires_ms))
        }
        SiteOp::MoveAlias { site, alias, deploy, if_current } => {
            move_alias::move_alias(tx, now, &site, &alias, deploy, if_current, None)
        }
        SiteOp::MoveAliasFor { site, alias, deploy, if_current, lifetime_secs } => {
            let expires_ms = expiry::expires_ms(now, &alias, lifetime_secs)?;
            move_alias::move_alias(tx, now, &site, &alias, deploy, if_current, Some(expires_ms))
        }
        SiteOp::RemoveDeploy { site, deploy } => remove_deploy::remove(tx, now, &site, deploy),
        SiteOp::Invalidate { site, patterns, soft } => {
            invalidate::invalidate(tx, now, site, patterns, soft)
        }
        SiteOp::Erase(request) => erase::erase(tx, now, *request),
        SiteOp::Unerase { site, chunks, lists } => erase::unerase(tx, now, site, &chunks, &lists),
    }
}

/// A site that must be there.
pub(crate) fn site(read: &impl Read, name: &SiteName) -> Apply<Site> {
    let missing = || {
        WireError::not_found(format!(
            "there is no site {name}: create it with `atoll site create {name}`, or deploy with \
             --create"
        ))
    };
    Ok(crate::store::sites::get(read, name)?.ok_or_else(missing)?)
}

/// Refuses when an alias does not point where the caller thinks.
fn check_current(
    site: &SiteName,
    alias: &AliasName,
    expected: Option<Option<DeployId>>,
    current: Option<DeployId>,
) -> Result<(), WireError> {
    match expected {
        Some(expected) if expected != current => {
            let say = |deploy: Option<DeployId>| match deploy {
                Some(id) => format!("deploy {id}"),
                None => "no deploy".to_owned(),
            };
            let message = format!(
                "alias {alias} of site {site} points at {}, not at {}: somebody else published; \
                 look at the newer deploy and try again",
                say(current),
                say(expected)
            );
            Err(WireError::new(Code::Conflict, message))
        }
        _ => Ok(()),
    }
}

/// What an alias is from now on.
struct Setting {
    deploy: DeployId,
    /// The deploys it can go back to.
    history: Vec<DeployId>,
    /// Whose files stay reachable.
    earlier: Vec<Earlier>,
    expires_ms: Option<u64>,
}

/// Points an alias somewhere and tells the edges.
fn set_alias(
    tx: &mut Transaction<'_>,
    now: Now,
    site: &SiteName,
    alias: &AliasName,
    setting: Setting,
) -> Apply<Seq> {
    let Setting { deploy, mut history, earlier, expires_ms } = setting;
    let set = |seq: Seq| Alias {
        site: site.clone(),
        alias: alias.clone(),
        deploy,
        seq,
        at_ms: now.at_ms(),
        earlier: earlier.clone(),
        expires_ms,
    };
    let seq = log(tx, now, |seq| PublishEvent::AliasSet(set(seq)))?;
    let surplus = history.len().saturating_sub(aliases::HISTORY_MAX);
    history.drain(..surplus);
    aliases::put(tx, &AliasRecord { alias: set(seq), history });
    Ok(seq)
}

fn log(tx: &mut Transaction<'_>, now: Now, event: impl FnOnce(Seq) -> PublishEvent) -> Apply<Seq> {
    Ok(publish_log::append(tx, now.index, now.at_ms(), event)?)
}
