//! Forget a deploy that no alias points at.
//!
//! Aliases that pointed at it before stop answering with its files in the same entry: no list of
//! earlier deploys ever names one whose bytes may be collected.

use atoll_proto::publish::{PublishEvent, Published};
use atoll_proto::{Code, DeployId, SiteName, WireError};

use crate::operation::{Apply, Now};
use crate::store::{Transaction, aliases, deploys, objects};

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
    let records = aliases::all(tx, Some(name))?;
    if let Some(record) = records.iter().find(|record| record.alias.deploy == id) {
        let message = format!(
            "deploy {id} of site {name} cannot be removed: alias {} points at it; move the alias \
             first",
            record.alias.alias
        );
        return Err(WireError::new(Code::Conflict, message).into());
    }
    for mut record in records {
        if record.alias.earlier.iter().any(|earlier| earlier.deploy == id) {
            record.alias.earlier.retain(|earlier| earlier.deploy != id);
            aliases::put(tx, &record);
            super::log(tx, now, |_| PublishEvent::AliasSet(record.alias))?;
        }
    }
    objects::drop_ref(tx, now, &id)?;
    deploys::remove(tx, &deploy);
    let removed = PublishEvent::DeployRemoved { site: name.clone(), deploy: id };
    let seq = super::log(tx, now, |_| removed)?;
    Ok(Published { seq, deploy: None, previous: None })
}
