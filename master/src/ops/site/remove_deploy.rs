//! Forget a deploy that no alias points at.

use atoll_proto::publish::Published;
use atoll_proto::{Code, DeployId, SiteName, WireError};

use crate::operation::{Apply, Now};
use crate::store::{Transaction, aliases, deploys, objects, publish_log};

pub(super) fn remove(
    tx: &mut Transaction<'_>,
    now: Now,
    name: &SiteName,
    id: DeployId,
) -> Apply<Published> {
    super::site(tx, name)?;
    let Some(deploy) = deploys::get(tx, name, &id)? else {
        let message =
            format!("site {name} has no deploy {id}: `atoll deploys {name}` lists what it has");
        return Err(WireError::not_found(message).into());
    };
    let pointing = |record: &aliases::AliasRecord| record.alias.deploy == id;
    if let Some(record) = aliases::all(tx, Some(name))?.into_iter().find(pointing) {
        let message = format!(
            "deploy {id} of site {name} cannot be removed: alias {} points at it; move the alias \
             first",
            record.alias.alias
        );
        return Err(WireError::new(Code::Conflict, message).into());
    }
    objects::drop_ref(tx, now, &id)?;
    deploys::remove(tx, &deploy);
    // Nothing that edges serve has changed, so the publish log has nothing to say.
    Ok(Published { seq: publish_log::last(tx)?, deploy: None, previous: None })
}
