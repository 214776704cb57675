//! Tokens: make, remove and list them. Secrets never get here, only their hashes.

use atoll_proto::error::WireResult;
use atoll_proto::master::{Changed, Grant, MasterResponse};
use atoll_proto::{ChunkId, Code, WireError};

use super::change::store_failed;
use crate::operation::{Apply, Now};
use crate::server::Master;
use crate::store::{Transaction, tokens};

/// Longest name of a token in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Most verbs a grant may list.
const VERBS_MAX: usize = 16;

/// Refuses a grant that allows nothing or cannot be kept.
pub(crate) fn check_grant(grant: &Grant) -> WireResult<()> {
    if grant.verbs.is_empty() {
        let message = "a token must allow something: read, write, deploy or admin";
        return Err(WireError::invalid(message));
    }
    if grant.name.len() > NAME_BYTES_MAX || grant.verbs.len() > VERBS_MAX {
        let message = format!("the name of a token may have {NAME_BYTES_MAX} bytes");
        return Err(WireError::invalid(message));
    }
    Ok(())
}

pub(crate) fn list(master: &Master) -> WireResult<MasterResponse> {
    tokens::all(&*master.consensus.state()).map(MasterResponse::Tokens).map_err(store_failed)
}

pub(crate) fn create(
    tx: &mut Transaction<'_>,
    now: Now,
    hash: &ChunkId,
    grant: Grant,
) -> Apply<Changed> {
    check_grant(&grant)?;
    if let Some(found) = tokens::get(tx, hash)? {
        let message = format!("this secret belongs to token {} already", found.id);
        return Err(WireError::new(Code::Exists, message).into());
    }
    let id = tokens::insert(tx, hash, grant, now.at_ms())?;
    Ok(Changed::TokenMade { id })
}

pub(crate) fn remove(tx: &mut Transaction<'_>, id: u64) -> Apply<Changed> {
    if tokens::remove(tx, id)? {
        return Ok(Changed::TokenRemoved);
    }
    let message = format!("there is no token {id}: `atoll token ls` lists those there are");
    Err(WireError::not_found(message).into())
}
