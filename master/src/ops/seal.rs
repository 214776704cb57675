//! Seal: a user wants a live site's directory published now (`atoll publish`).
//!
//! The sealer ([`crate::live`]) does it, as it does by itself after changes; what the state
//! machine does with the outcome is in [`super::site`].

use atoll_net::Context;
use atoll_proto::error::WireResult;
use atoll_proto::master::{Changed, MasterResponse};
use atoll_proto::{SiteName, WireError};

use super::change::failed;
use super::site;
use crate::server::Master;

pub(crate) async fn seal(
    master: &Master,
    context: &Context,
    name: &SiteName,
) -> WireResult<MasterResponse> {
    master.consensus.read().await?;
    let found = site::site(&*master.consensus.state(), name).map_err(failed)?;
    if found.settings.live.is_none() {
        return Err(WireError::invalid(format!(
            "site {name} follows no directory: choose one with `atoll site set {name} --live \
             PATH`, or use `atoll deploy`"
        )));
    }
    let published = master.live.seal(name, context.deadline).await?;
    let index = master.consensus.applied().borrow().index;
    Ok(MasterResponse::Changed { index, reply: Changed::Site(published) })
}
