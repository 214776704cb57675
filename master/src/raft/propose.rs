//! Group commit: proposals of many requests become one log entry, and so one fsync.
//!
//! An idle proposer sends what it has at once. While an entry is on its way, operations gather
//! for at most [`LINGER`] (or until the entry is full or the way is free) and then follow: at most
//! [`IN_FLIGHT_MAX`] entries are on their way, so that one is synced while another is applied.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atoll_proto::{Code, Retry, WireError};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::entry::{EntryData, Raft};
use crate::operation::{OpReply, Operation};

/// Most operations in one entry.
const OPERATIONS_MAX: usize = 256;
/// An entry is full when it holds this many bytes.
const ENTRY_BYTES: usize = 1 << 20;
/// How long operations gather while an entry is on its way.
const LINGER: Duration = Duration::from_millis(2);
/// Most entries on their way.
const IN_FLIGHT_MAX: usize = 2;
/// Most operations waiting.
const QUEUE: usize = 4096;
/// An entry that is on its way for so long is not waited for any more, or two of them would keep all
/// others back: longer than any operation's deadline.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(60);

struct Pending {
    operation: Bytes,
    deadline: Instant,
    reply: oneshot::Sender<Result<OpReply, WireError>>,
}

/// Proposes operations. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Pending>,
}

impl Proposer {
    /// Starts the task that gathers and proposes; it ends when every clone is dropped.
    pub(crate) fn start(raft: Raft) -> Proposer {
        let (queue, pending) = mpsc::channel(QUEUE);
        atoll_net::task::spawn("propose", run(raft, pending));
        Proposer { queue }
    }

    /// Proposes an operation and waits until it is applied.
    ///
    /// # Errors
    /// `Unavailable` when the queue is full or leadership was lost, `Deadline`. After any of them but
    /// a full queue the operation may still be carried out.
    pub(crate) async fn propose(&self, operation: &Operation, deadline: Instant) -> OpReply {
        let (reply, answer) = oneshot::channel();
        let operation = Bytes::from(atoll_proto::encode(operation));
        let full = |_| {
            let mut error = WireError::unavailable(
                "the master has too many changes waiting: try again in a moment",
            );
            error.retry = Retry::Same;
            error
        };
        self.queue.try_send(Pending { operation, deadline, reply }).map_err(full)?;
        metrics::gauge!("atoll_master_queue_length").set((QUEUE - self.queue.capacity()) as f64);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => Err(WireError::unavailable("the master is stopping")),
            Err(_) => Err(late()),
        }
    }
}

fn late() -> WireError {
    WireError::new(Code::Deadline, "the change was not committed in time; it may be later")
}

async fn run(raft: Raft, mut queue: mpsc::Receiver<Pending>) {
    let mut in_flight = FuturesUnordered::new();
    let mut gathered: Vec<Pending> = Vec::new();
    let mut bytes = 0;
    let mut gathered_since = Instant::now();
    loop {
        let full = gathered.len() >= OPERATIONS_MAX || bytes >= ENTRY_BYTES;
        let room = in_flight.len() < IN_FLIGHT_MAX;
        let due = full || in_flight.is_empty() || gathered_since.elapsed() >= LINGER;
        if !gathered.is_empty() && room && due {
            // What is queued already comes along.
            while gathered.len() < OPERATIONS_MAX && bytes < ENTRY_BYTES {
                let Ok(pending) = queue.try_recv() else { break };
                bytes += pending.operation.len();
                gathered.push(pending);
            }
            bytes = 0;
            in_flight.push(commit(raft.clone(), std::mem::take(&mut gathered)));
            continue;
        }
        let linger = tokio::time::sleep_until(gathered_since + LINGER);
        tokio::select! {
            biased;
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
            pending = queue.recv(), if !full => match pending {
                Some(pending) => {
                    if gathered.is_empty() {
                        gathered_since = Instant::now();
                    }
                    bytes += pending.operation.len();
                    gathered.push(pending);
                }
                None => break,
            },
            () = linger, if !gathered.is_empty() && room => {}
        }
    }
    while in_flight.next().await.is_some() {}
}

async fn commit(raft: Raft, gathered: Vec<Pending>) {
    let now = Instant::now();
    let mut operations = Vec::with_capacity(gathered.len());
    let mut waiting = Vec::with_capacity(gathered.len());
    for pending in gathered {
        // Nobody waits for it any more, and it was not proposed: surely not carried out.
        if pending.deadline <= now || pending.reply.is_closed() {
            answer(pending.reply, Err(late()));
        } else {
            operations.push(pending.operation);
            waiting.push(pending.reply);
        }
    }
    if operations.is_empty() {
        return;
    }
    metrics::histogram!("atoll_master_operations_per_entry").record(operations.len() as f64);
    let at_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let at_ns = u64::try_from(at_ns).unwrap_or(u64::MAX);
    let written = raft.client_write(EntryData { at_ns, operations });
    let written = tokio::time::timeout(ON_ITS_WAY_MAX, Box::pin(written)).await;
    metrics::histogram!("atoll_master_commit_seconds").record(now.elapsed().as_secs_f64());
    match written {
        Ok(Ok(written)) => {
            for (reply, answered) in waiting.into_iter().zip(written.data.replies) {
                answer(reply, Ok(answered));
            }
        }
        Ok(Err(error)) => {
            let error = refused(&error);
            for reply in waiting {
                answer(reply, Err(error.clone()));
            }
        }
        // Nobody waits so long; whoever does is told by the closed channel.
        Err(_) => tracing::warn!("an entry of the log was not committed in a minute"),
    }
}

fn answer(reply: oneshot::Sender<Result<OpReply, WireError>>, answer: Result<OpReply, WireError>) {
    if reply.send(answer).is_err() {
        tracing::trace!("nobody waits for this change any more");
    }
}

fn refused(error: &RaftError<u64, ClientWriteError<u64, openraft::BasicNode>>) -> WireError {
    match error {
        // It may be in the log already, and then another leader may commit it: not the same as
        // asking the wrong master.
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            let refusal = super::not_leader(forward.leader_id, forward.leader_node.as_ref());
            WireError::unavailable(format!(
                "the change was not acknowledged and may still be made: {refusal}"
            ))
        }
        other => WireError::unavailable(format!("the master cannot commit: {other}")),
    }
}
