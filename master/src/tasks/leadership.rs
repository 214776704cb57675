//! What happens when a master becomes the leader: it forgets what it heard of nodes before, and
//! makes the cluster if there is none yet, and settles who the masters are.

use std::sync::Arc;
use std::time::Duration;

use atoll_proto::receipt::ReceiptKey;
use tokio::time::Instant;

use crate::operation::Operation;
use crate::ops::masters::settle_members;
use crate::raft::TASK_DEADLINE;
use crate::server::Master;

const RETRY: Duration = Duration::from_millis(100);

pub(crate) async fn run(master: Arc<Master>) {
    loop {
        if !wait_for(&master, true).await {
            return;
        }
        // Looking is enough: what was heard before is forgotten.
        drop(master.liveness());
        tracing::info!(id = master.consensus.id(), term = master.consensus.term(), "leading");
        metrics::gauge!("atoll_master_leader").set(1.0);
        make_cluster(&master).await;
        let lost = wait_for(&master, false);
        tokio::pin!(lost);
        let lost = tokio::select! {
            known = &mut lost => known,
            () = Box::pin(settle_members(&master)) => lost.await,
        };
        if !lost {
            return;
        }
        tracing::info!(id = master.consensus.id(), "no longer leading");
        metrics::gauge!("atoll_master_leader").set(0.0);
    }
}

/// Waits until this master leads, or does not; `false` at the end.
async fn wait_for(master: &Master, leads: bool) -> bool {
    tokio::select! {
        known = master.consensus.leadership_changed(!leads) => known,
        () = master.shutdown.wait() => false,
    }
}

async fn make_cluster(master: &Master) {
    while master.consensus.leads() && !master.shutdown.is_triggered() {
        // Only a read tells for sure that an earlier leader did not make it.
        if master.consensus.read().await.is_ok() {
            if master.cluster_record().is_ok() {
                return;
            }
            let operation = Operation::Init {
                cluster: master.settings.cluster,
                receipt_key: ReceiptKey(rand::random()),
                chunk_bytes: master.settings.chunk_bytes,
                bootstrap_token: master.settings.bootstrap_token,
            };
            let deadline = Instant::now() + TASK_DEADLINE;
            match master.consensus.propose(&operation, deadline).await {
                Ok(_) => tracing::info!(cluster = %master.settings.cluster, "made the cluster"),
                Err(error) => tracing::warn!(%error, "cannot make the cluster yet"),
            }
            continue;
        }
        tokio::time::sleep(RETRY).await;
    }
}
