//! Seal: the directory of a live site becomes a deploy, and `production` points at it.
//!
//! Proposed by the leader's sealer ([`crate::live`]) alone. Doing it twice changes nothing.

use atoll_proto::master::ObjectKind;
use atoll_proto::publish::Published;
use atoll_proto::{AliasName, Code, SiteName, WireError, limits};

use super::publish::{Publish, publish};
use super::remove_deploy;
use crate::operation::{Apply, Failure, Now, Seal};
use crate::store::{Transaction, aliases, deploys, live, objects};

/// What deploys of live sites have as their message.
const MESSAGE: &str = "live";
/// Most deploys forgotten with one seal.
const FORGOTTEN_MAX: usize = 16;

pub(crate) fn seal(tx: &mut Transaction<'_>, now: Now, seal: Seal) -> Apply<Published> {
    let Seal { site: name, live: path, deploy, root, current, forced } = seal;
    let site = super::site(tx, &name)?;
    if site.settings.live.as_deref() != Some(&path) {
        let message = format!("site {name} does not follow {path} any more");
        return Err(WireError::new(Code::Conflict, message).into());
    }
    let production = AliasName::production();
    let alias = aliases::get(tx, &name, &production)?.map(|record| record.alias);
    let points_at = alias.as_ref().map(|alias| alias.deploy);
    let published = match alias {
        Some(alias) if alias.deploy == deploy => {
            Published { seq: alias.seq, deploy: Some(deploy), previous: Some(deploy) }
        }
        // Somebody moved the alias after the directory was read: that is the later decision.
        Some(alias) if !forced && points_at != current => {
            let points_at = Some(alias.deploy);
            Published { seq: alias.seq, deploy: points_at, previous: points_at }
        }
        _ => {
            if objects::get(tx, &deploy)?.is_none_or(|object| object.kind != ObjectKind::Page) {
                return Err(Failure::Missing(vec![deploy]));
            }
            let known = deploys::get(tx, &name, &deploy)?.is_some();
            let message = if known { String::new() } else { MESSAGE.to_owned() };
            let site = name.clone();
            let (alias, if_current, create) = (production, None, false);
            let request = Publish { site, alias, deploy, if_current, message, create };
            publish(tx, now, request, Some(root), None)?
        }
    };
    live::put(tx, &name, &deploy);
    forget(tx, now, &name)?;
    Ok(published)
}

/// Forgets the oldest deploys that were sealed from the directory, beyond those that are kept.
fn forget(tx: &mut Transaction<'_>, now: Now, name: &SiteName) -> Apply<()> {
    if deploys::ids(tx, name, None, limits::LIVE_DEPLOYS_KEPT + 1)?.len()
        <= limits::LIVE_DEPLOYS_KEPT
    {
        return Ok(());
    }
    let sealed: Vec<_> = deploys::list(tx, name, None, limits::LIVE_DEPLOYS_KEPT * 2)?
        .into_iter()
        .filter(|deploy| deploy.message == MESSAGE)
        .collect();
    let pointed: Vec<_> = aliases::all(tx, Some(name))?.into_iter().map(|it| it.alias).collect();
    let surplus = sealed.iter().skip(limits::LIVE_DEPLOYS_KEPT).rev();
    let free = |id| {
        pointed.iter().all(|alias| {
            alias.deploy != id && alias.earlier.iter().all(|earlier| earlier.deploy != id)
        })
    };
    let surplus: Vec<_> = surplus.map(|deploy| deploy.id).filter(|id| free(*id)).collect();
    for id in surplus.into_iter().take(FORGOTTEN_MAX) {
        remove_deploy::remove(tx, now, name, id)?;
    }
    Ok(())
}
