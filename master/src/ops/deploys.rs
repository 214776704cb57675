//! Deploys: the history of a site, latest first.

use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::{Seq, SiteName};

use super::change::{failed, store_failed};
use crate::server::Master;
use crate::store::deploys;

/// Most deploys in one reply.
const DEPLOYS_MAX: u32 = 1000;

pub(crate) async fn deploys(
    master: &Master,
    site: &SiteName,
    before: Option<Seq>,
    limit: u32,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    let view = state.view();
    super::site::site(&view, site).map_err(failed)?;
    let limit = usize::try_from(limit.min(DEPLOYS_MAX)).unwrap_or(0);
    let found = deploys::list(&view, site, before, limit).map_err(store_failed)?;
    Ok(MasterResponse::Deploys(found))
}
