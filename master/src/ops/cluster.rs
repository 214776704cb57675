//! Cluster: the nodes and the placement table, as clients cache them.

use atoll_proto::cluster::ClusterView;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use tokio::time::Instant;

use crate::server::Master;

pub(crate) async fn cluster(
    master: &Master,
    known_index: Option<u64>,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let applied = *master.consensus.applied().borrow();
    let roster = master.roster()?;
    // Whether a node is heard of is not in the log: a change of that counts as of the index at
    // which it was noticed, and a view of that very index may be from before.
    let now = Instant::now();
    let mut liveness = master.liveness();
    let noticed = liveness.notice(roster.all(), now, applied.index);
    let unchanged = known_index.is_some_and(|known| {
        known >= applied.view_changed && known > noticed && known <= applied.index
    });
    if unchanged {
        return Ok(MasterResponse::Cluster(None));
    }
    // Under the same lock and at the same moment: what is sent is what was noticed.
    let views = liveness.views(roster.all(), now);
    drop(liveness);
    let view = ClusterView {
        cluster: master.settings.cluster,
        index: applied.index,
        chunk_bytes: master.cluster_record()?.chunk_bytes,
        nodes: master.with_duties(views)?,
        table: (*master.table()?).clone(),
        zone: master.settings.zone.clone(),
        url_template: master.settings.url_template.clone(),
    };
    Ok(MasterResponse::Cluster(Some(Box::new(view))))
}
