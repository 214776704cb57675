//! Point an alias at another deploy: rollback and promote.
//!
//! An alias remembers the deploys it pointed at as a stack. Publishing puts one on top. Going
//! back takes from the top, so that going back again goes back further; moving to a deploy that
//! is in the stack goes back to it, and to any other deploy counts as publishing it here.

use atoll_proto::publish::Published;
use atoll_proto::{AliasName, DeployId, SiteName, WireError};

use super::{check_current, set_alias, site};
use crate::operation::{Apply, Now};
use crate::store::{Transaction, aliases, deploys};

pub(super) fn move_alias(
    tx: &mut Transaction<'_>,
    now: Now,
    name: &SiteName,
    alias: &AliasName,
    to: Option<DeployId>,
    if_current: Option<Option<DeployId>>,
) -> Apply<Published> {
    site(tx, name)?;
    let record = aliases::get(tx, name, alias)?;
    let current = record.as_ref().map(|record| record.alias.deploy);
    check_current(name, alias, if_current, current)?;
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
        None => earlier(tx, name, alias, current, &mut history)?,
    };
    let seq = set_alias(tx, now, name, alias, deploy, history)?;
    Ok(Published { seq, deploy: Some(deploy), previous: current })
}

/// The deploy before the current one that still exists.
fn earlier(
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
