//! Aliases that are removed after a while: previews.
//!
//! The leader's task ([`crate::tasks::aliases`]) proposes that aliases be looked at; which of them
//! have expired is decided here, by the clock of the log. Their deploys stay.

use atoll_proto::publish::PublishEvent;
use atoll_proto::{AliasName, WireError, limits};

use crate::operation::{Apply, Now};
use crate::store::{Transaction, aliases};

/// Most aliases that one entry of the log removes.
const AT_ONCE: usize = 256;

/// When an alias is removed that is set now for so long.
pub(super) fn expires_ms(
    now: Now,
    alias: &AliasName,
    lifetime_secs: u64,
) -> Result<u64, WireError> {
    if *alias == AliasName::production() {
        let message = "production cannot expire: name another alias with --alias";
        return Err(WireError::invalid(message));
    }
    let most = limits::ALIAS_LIFETIME_MAX.as_secs();
    if !(1..=most).contains(&lifetime_secs) {
        let message =
            format!("an alias lives for 1 to {most} seconds, not for {lifetime_secs} seconds");
        return Err(WireError::invalid(message));
    }
    Ok(now.at_ms().saturating_add(lifetime_secs * 1000))
}

/// Removes aliases that have expired; some of them, if there are very many.
pub(crate) fn expire(tx: &mut Transaction<'_>, now: Now) -> Apply<()> {
    let all = aliases::all(tx, None)?.into_iter().map(|record| record.alias);
    let expired = all.filter(|alias| alias.expires_ms.is_some_and(|at| at <= now.at_ms()));
    for alias in expired.take(AT_ONCE).collect::<Vec<_>>() {
        aliases::remove(tx, &alias.site, &alias.alias);
        let (site, alias) = (alias.site, alias.alias);
        super::log(tx, now, |_| PublishEvent::AliasRemoved { site, alias })?;
    }
    Ok(())
}
