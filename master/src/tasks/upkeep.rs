//! Measures and tidies: disk space, gauges, a snapshot when the log has grown.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::raft::Grown;
use crate::server::Master;

const EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(master: Arc<Master>, data: PathBuf) {
    let mut grown = Grown::default();
    loop {
        master.disk.measure(&data);
        master.backups.expire(Instant::now());
        let applied = *master.consensus.applied().borrow();
        metrics::gauge!("atoll_master_applied_index").set(applied.index as f64);
        metrics::gauge!("atoll_master_publish_seq").set(applied.publish_seq as f64);
        metrics::gauge!("atoll_master_epoch").set(applied.epoch as f64);
        metrics::gauge!("atoll_master_term").set(master.consensus.term() as f64);
        master.consensus.compact(&mut grown).await;
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = master.shutdown.wait() => return,
        }
    }
}
