//! Point an alias at another deploy: rollback and promote.
//!
//! An alias remembers the deploys it pointed at as a stack. Publishing puts one on top. Going
//! back takes from the top, so that going back again goes back further; moving to a deploy that
//! is in the stack goes back to it, and to any other deploy counts as publishing it here.

use atoll_proto::publish::Published;
use atoll_proto::{AliasName, DeployId, SiteName, WireError};

use super::{Setting, check_current, set_alias, site};
use crate::operation::{Apply, Now};
use crate::store::{Transaction, aliases, deploys};

/// `expires_ms` is when the alias is removed from now on; `None` leaves what was said before.
pub(super) fn move_alias(
    tx: &mut Transaction<'_>,
    now: Now,
    name: &SiteName,
    alias: &AliasName,
    to: Option<DeployId>,
    if_current: Option<Option<DeployId>>,
    expires_ms: Option<u64>,
) -> Apply<Published> {
    let limits = site(tx, name)?.settings.earlier;
    let record = aliases::get(tx, name, alias)?;
    let current = record.as_ref().map(|record| record.alias.deploy);
    check_current(name, alias, if_current, current)?;
    let expires_ms = expires_ms.or(record.as_ref().and_then(|record| record.alias.expires_ms));
    let before = record.clone();
    let mut history = record.map(|record| record.history).unwrap_or_default();
    let deploy = match to {
        Some(deploy) => {
            if deploys::get(tx, name, &deploy)?.is_none() {
                let message = format!(
                    "site {name} has no deploy {deploy}: `atoll deploys {name}` lists what it has"
                );
                return Err(WireError::not_found(message).into());
            }
            match history.iter().rposition(|earlier| *earlier == deploy) {
                Some(at) => history.truncate(at),
                None => history.extend(current.filter(|current| *current != deploy)),
            }
            deploy
        }
        None => one_back(tx, name, alias, current, &mut history)?,
    };
    let earlier = super::earlier::after_move(before.as_ref(), deploy, limits, now.at_ms());
    let setting = Setting { deploy, history, earlier, expires_ms };
    let seq = set_alias(tx, now, name, alias, setting)?;
    Ok(Published { seq, deploy: Some(deploy), previous: current })
}

/// The deploy before the current one that still exists.
fn one_back(
    tx: &Transaction<'_>,
    name: &SiteName,
    alias: &AliasName,
    current: Option<DeployId>,
    history: &mut Vec<DeployId>,
) -> Apply<DeployId> {
    if current.is_none() {
        let message = format!(
            "site {name} has no alias {alias}: publish to it first, or name the deploy it should \
             point at"
        );
        return Err(WireError::not_found(message).into());
    }
    while let Some(deploy) = history.pop() {
        if Some(deploy) != current && deploys::get(tx, name, &deploy)?.is_some() {
            return Ok(deploy);
        }
    }
    let message = format!(
        "alias {alias} of site {name} has no earlier deploy to go back to: name one of those \
         that `atoll deploys {name}` lists"
    );
    Err(WireError::not_found(message).into())
}
