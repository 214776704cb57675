//! Sites and Site: what sites there are and where their aliases point.

use std::collections::BTreeMap;

use atoll_proto::SiteName;
use atoll_proto::error::WireResult;
use atoll_proto::master::MasterResponse;
use atoll_proto::publish::Alias;

use super::change::{failed, store_failed};
use crate::auth::Principal;
use crate::server::Master;
use crate::store::{aliases, sites};

/// All sites; for a token of one site only that one.
pub(crate) async fn sites(master: &Master, principal: &Principal) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    let view = state.view();
    let mut by_site: BTreeMap<SiteName, Vec<Alias>> = BTreeMap::new();
    for record in aliases::all(&view, None).map_err(store_failed)? {
        by_site.entry(record.alias.site.clone()).or_default().push(record.alias);
    }
    let found = sites::all(&view).map_err(store_failed)?;
    let visible = found.into_iter().filter(|site| principal.sees(&site.name));
    let listed = visible.map(|site| {
        let aliases = by_site.remove(&site.name).unwrap_or_default();
        (site, aliases)
    });
    Ok(MasterResponse::Sites(listed.collect()))
}

/// One site.
pub(crate) async fn site(master: &Master, name: &SiteName) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let state = master.consensus.state();
    let view = state.view();
    let site = super::site::site(&view, name).map_err(failed)?;
    let aliases = aliases::all(&view, Some(name)).map_err(store_failed)?;
    let aliases = aliases.into_iter().map(|record| record.alias).collect();
    Ok(MasterResponse::Site { site, aliases })
}
