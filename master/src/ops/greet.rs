//! Greet: masters tell each other who they are and what they know of the asker. Answered by every
//! master, whether it leads, belongs to a cluster, or neither.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::masters::{Greeting, Incarnation, Standing};

use super::change::store_failed;
use crate::server::Master;
use crate::store::masters;

pub(crate) fn greet(
    master: &Master,
    id: u64,
    incarnation: Incarnation,
) -> WireResult<MasterResponse> {
    // What the state says of an id is never unsaid, so that it need not be the latest.
    let known = masters::get(&*master.consensus.state(), id).map_err(store_failed)?;
    let standing = match (known, master.admission.founder(id)) {
        (Some(record), _) => record.standing(incarnation),
        (None, Some(founder)) if founder == incarnation => Standing::Admitted,
        (None, Some(_)) => Standing::Refused,
        (None, None) => Standing::Unknown,
    };
    Ok(MasterResponse::Greeting(Greeting {
        id: master.consensus.id(),
        incarnation: master.admission.incarnation(),
        formed: !master.consensus.log_is_empty().map_err(store_failed)?,
        standing,
    }))
}
