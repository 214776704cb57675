//! Change: everything a client changes, done exactly once.
//!
//! The leader checks what applying cannot (who asks, receipts, pages, room on the disk), turns
//! the request into an operation and proposes it.

use std::collections::HashSet;
use std::time::Duration;

use atoll_net::Context;
use atoll_proto::error::WireResult;
use atoll_proto::master::{Change, Changed, MasterResponse};
use atoll_proto::namespace::NamespaceOp;
use atoll_proto::publish::SiteOp;
use atoll_proto::{ChunkId, Code, Content, Retry, SessionId, WireError, limits};
use tokio::time::Instant;

use super::namespace::content;
use super::{admit, node, numbered, site, tokens, upkeep};
use crate::auth::Principal;
use crate::cover;
use crate::operation::{Covered, Failure, LoggedChange, Operation, Outcome, RootFacts, Seal};
use crate::server::Master;
use crate::store::sessions::{self, Session, StoredReply};
use crate::store::{StoreError, erased};

/// How often it is looked whether earlier changes are over.
const SETTLE_LOOK: Duration = Duration::from_millis(10);
/// Time that must be left then for what waited.
const SETTLE_MARGIN: Duration = Duration::from_secs(1);

/// The numbers of a request within its session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// In which session.
    pub(crate) session: SessionId,
    /// The request.
    pub(crate) number: u64,
    /// Replies below may be forgotten.
    pub(crate) acked_below: u64,
}

/// What the leader made of a request.
pub(crate) enum Prepared {
    /// Propose this.
    Log(LoggedChange),
    /// Chunks are missing: answer at once, nothing was changed.
    Missing(Vec<ChunkId>),
}

pub(crate) async fn change(
    master: &Master,
    context: &Context,
    principal: &Principal,
    numbers: Numbers,
    change: Change,
) -> WireResult<MasterResponse> {
    let Numbers { session, number, acked_below } = numbers;
    let abandons = matches!(change, Change::Abandon);
    if matches!(change, Change::Site(SiteOp::Unerase { .. })) {
        settle(master, context.deadline).await?;
    }
    // Until it is applied: what it takes receipts of old members for must not leave them meanwhile.
    let _relying = master.finishing.rely();
    let mut looked = Box::pin(look_at(master, context, principal, numbers, change.clone())).await;
    if match &looked {
        Ok(Looked::Missing(_)) => true,
        Ok(Looked::Answered(_) | Looked::Log(_)) => false,
        Err(error) => error.retry == Retry::Never,
    } {
        // It is answered from the state as this master has it. A new leader may not have applied
        // yet what its predecessor acknowledged, this very request among it, and one that has lost
        // its leadership never will.
        master.consensus.read().await?;
        looked = Box::pin(look_at(master, context, principal, numbers, change)).await;
    }
    let change = match looked? {
        Looked::Log(change) => change,
        Looked::Answered(stored) => {
            let stored = if abandons { numbered::abandoned(stored) } else { stored };
            let StoredReply { index, reply } = stored;
            return Ok(MasterResponse::Changed { index, reply: reply? });
        }
        Looked::Missing(ids) => {
            let index = master.consensus.applied().borrow().index;
            return Ok(MasterResponse::Changed { index, reply: Changed::Missing { ids } });
        }
    };
    let operation = Operation::Numbered { session, number, acked_below, change };
    match master.consensus.propose(&operation, context.deadline).await? {
        Outcome::Changed { index, reply } => Ok(MasterResponse::Changed { index, reply }),
        other => Err(WireError::internal(format!("a change gave {other:?}"))),
    }
}

/// Waits until no change is under way that began before: one may hold receipts for bytes that were
/// erased meanwhile, which must not count once that is lifted. Changes that begin later know that they
/// were erased.
async fn settle(master: &Master, deadline: Instant) -> WireResult<()> {
    master.consensus.read().await?;
    let mark = master.finishing.mark();
    while !master.finishing.passed(mark) {
        if Instant::now() + SETTLE_MARGIN >= deadline {
            return Err(WireError::unavailable("changes that began before do not end: try again"));
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
    Ok(())
}

/// What the leader can say of a request before it is logged.
enum Looked {
    /// It was answered before.
    Answered(StoredReply),
    /// Chunks are missing.
    Missing(Vec<ChunkId>),
    /// It must be logged.
    Log(LoggedChange),
}

async fn look_at(
    master: &Master,
    context: &Context,
    principal: &Principal,
    numbers: Numbers,
    change: Change,
) -> WireResult<Looked> {
    if let Some(stored) = check_session(master, principal, numbers).await? {
        return Ok(Looked::Answered(stored));
    }
    if grows(&change) {
        master.disk.check_room()?;
    }
    Ok(match prepare(master, context, numbers.session, change).await? {
        Prepared::Log(change) => Looked::Log(change),
        Prepared::Missing(ids) => Looked::Missing(ids),
    })
}

/// Proposes what a live site was sealed as, exactly once like every change.
pub(crate) async fn seal(
    master: &Master,
    principal: &Principal,
    numbers: Numbers,
    seal: Seal,
    deadline: Instant,
) -> WireResult<Changed> {
    let Numbers { session, number, acked_below } = numbers;
    if let Some(stored) = check_session(master, principal, numbers).await? {
        return stored.reply;
    }
    master.disk.check_room()?;
    let change = LoggedChange::Seal(seal);
    let operation = Operation::Numbered { session, number, acked_below, change };
    match master.consensus.propose(&operation, deadline).await? {
        Outcome::Changed { reply, .. } => Ok(reply),
        other => Err(WireError::internal(format!("a seal gave {other:?}"))),
    }
}

/// Checks that the session is the caller's; returns the reply to a repeated request.
async fn check_session(
    master: &Master,
    principal: &Principal,
    numbers: Numbers,
) -> WireResult<Option<StoredReply>> {
    let Numbers { session: id, number, acked_below } = numbers;
    let find = || sessions::get(&*master.consensus.state(), id).map_err(store_failed);
    let session: Session = match find()? {
        Some(session) => session,
        None => {
            // A new leader may not have applied everything yet: only then is it surely unknown.
            master.consensus.read().await?;
            find()?.ok_or_else(numbered::unknown_session)?
        }
    };
    if session.owner != principal.id {
        let message = format!("session {id} belongs to another token: open a new one");
        return Err(WireError::new(Code::Denied, message));
    }
    let repeated =
        numbered::repeated(&*master.consensus.state(), id, &session, number, acked_below);
    repeated.map_err(failed)
}

/// Turns a request into what is logged.
async fn prepare(
    master: &Master,
    context: &Context,
    session: SessionId,
    change: Change,
) -> WireResult<Prepared> {
    match change {
        Change::Namespace(op) => prepare_namespace(master, session, op),
        Change::Site(op) => {
            let root = check_site(master, context, &op).await?;
            Ok(Prepared::Log(LoggedChange::Site { op, root }))
        }
        Change::Admit { pages, receipts } => {
            admit::prepare(master, context, session, &pages, &receipts).await
        }
        Change::TokenCreate { hash, grant } => {
            tokens::check_grant(&grant)?;
            Ok(Prepared::Log(LoggedChange::TokenCreate { hash, grant }))
        }
        Change::Upkeep(op) => {
            upkeep::check(&op)?;
            Ok(Prepared::Log(LoggedChange::Upkeep(op)))
        }
        Change::Node(op) => {
            node::check(master, &op)?;
            Ok(Prepared::Log(LoggedChange::Node(op)))
        }
        Change::TokenRemove { id } => Ok(Prepared::Log(LoggedChange::TokenRemove { id })),
        Change::Abandon => Ok(Prepared::Log(LoggedChange::Abandon)),
    }
}

/// Checks the receipts of operations that have some; they are not logged.
fn prepare_namespace(
    master: &Master,
    session: SessionId,
    mut op: NamespaceOp,
) -> WireResult<Prepared> {
    if let NamespaceOp::SetXattr { value, .. } = &op
        && value.len() > limits::XATTR_BYTES_MAX
    {
        // Not worth logging; the state machine refuses more of them together than there may be.
        let message =
            format!("an extended attribute has at most {} bytes", limits::XATTR_BYTES_MAX);
        return Err(WireError { retry: Retry::Never, ..WireError::new(Code::Full, message) });
    }
    let (NamespaceOp::Commit { content, receipts, .. }
    | NamespaceOp::Write { content, receipts, .. }
    | NamespaceOp::PutFile { content, receipts, .. }) = &mut op
    else {
        return Ok(Prepared::Log(LoggedChange::Namespace { op, covered: Vec::new() }));
    };
    let receipts = std::mem::take(receipts);
    content.check()?;
    let covered = covered(master, session, content, &receipts)?;
    match content::check(&*master.consensus.state(), content, &covered) {
        Ok(()) => Ok(Prepared::Log(LoggedChange::Namespace { op, covered })),
        Err(Failure::Missing(ids)) => Ok(Prepared::Missing(ids)),
        // The state machine refuses it in turn: the answer must be the same for a repeat.
        Err(Failure::Refused(_)) => Ok(Prepared::Log(LoggedChange::Namespace { op, covered })),
        Err(Failure::Store(error)) => Err(store_failed(error)),
    }
}

fn covered(
    master: &Master,
    session: SessionId,
    content: &Content,
    receipts: &[atoll_proto::receipt::Receipt],
) -> WireResult<Vec<Covered>> {
    if receipts.is_empty() {
        return Ok(Vec::new());
    }
    let needed: HashSet<_> = content::chunks(content).1.into_iter().map(|(id, _)| id).collect();
    let checker = cover::Checker {
        key: master.receipt_key()?,
        session,
        now_ms: crate::server::now_ms(),
        table: master.cover_table()?,
    };
    let state = master.consensus.state();
    let wanted = |id: &ChunkId, epoch| -> Result<bool, StoreError> {
        Ok(needed.contains(id) && erased::admits_receipt(&*state, id, epoch)?)
    };
    checker.covered(receipts, wanted).map_err(store_failed)
}

async fn check_site(
    master: &Master,
    context: &Context,
    op: &SiteOp,
) -> WireResult<Option<RootFacts>> {
    let (SiteOp::Publish { deploy, message, .. } | SiteOp::PublishFor { deploy, message, .. }) = op
    else {
        return Ok(None);
    };
    site::check_message(message)?;
    admit::root_facts(master, context, *deploy).await.map(Some)
}

/// Whether a change needs room on the master's disk. Deletions always go on, so that a full disk
/// can be emptied.
fn grows(change: &Change) -> bool {
    match change {
        Change::Namespace(op) => !matches!(
            op,
            NamespaceOp::Unlink { .. }
                | NamespaceOp::Rmdir { .. }
                | NamespaceOp::SetAttr { .. }
                | NamespaceOp::DropPrivileges { .. }
                | NamespaceOp::RemoveXattr { .. }
        ),
        Change::Site(op) => matches!(
            op,
            SiteOp::Create { .. }
                | SiteOp::CreateWith { .. }
                | SiteOp::Publish { .. }
                | SiteOp::PublishFor { .. }
        ),
        Change::Admit { .. } | Change::TokenCreate { .. } => true,
        Change::TokenRemove { .. } | Change::Node(_) | Change::Upkeep(_) | Change::Abandon => false,
    }
}

/// The disk failed while a request was looked at.
pub(crate) fn store_failed(error: StoreError) -> WireError {
    tracing::error!(%error, "the master's database failed");
    WireError::internal(error.to_string())
}

/// The answer to a request that was looked at and refused.
pub(crate) fn failed(failure: Failure) -> WireError {
    match failure {
        Failure::Refused(error) => error,
        Failure::Store(error) => store_failed(error),
        Failure::Missing(ids) => {
            let message = format!("{} chunks are missing: upload them first", ids.len());
            WireError::new(Code::Missing, message)
        }
    }
}
