//! OpenSession: the scope of exactly-once requests and of receipts.

use atoll_net::Context;
use atoll_proto::WireError;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;

use crate::auth::Principal;
use crate::operation::{Apply, Now, Operation, Outcome};
use crate::server::Master;
use crate::store::Transaction;
use crate::store::sessions::{self, Session};

/// Longest name of a session that is kept, in bytes.
const NAME_BYTES_MAX: usize = 256;

pub(crate) async fn open_session(
    master: &Master,
    context: &Context,
    principal: &Principal,
    name: String,
) -> WireResult<MasterResponse> {
    let name: String = name.chars().take(NAME_BYTES_MAX / 4).collect();
    let operation = Operation::OpenSession { name, owner: principal.id.clone() };
    match master.consensus.propose(&operation, context.deadline).await? {
        Outcome::Session(session) => {
            Ok(MasterResponse::Session { session, cluster: master.settings.cluster })
        }
        other => Err(WireError::internal(format!("opening a session gave {other:?}"))),
    }
}

pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    name: String,
    owner: String,
) -> Apply<Outcome> {
    let session = Session { name, owner, used_ms: now.at_ms(), acked_below: 0 };
    Ok(Outcome::Session(sessions::insert(tx, &session)?))
}
