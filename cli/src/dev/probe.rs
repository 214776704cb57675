//! Whether the cluster really serves: asked as a user and as a visitor would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atoll_client::{ClientConfig, Cluster};
use atoll_net::Shutdown;
use atoll_proto::cluster::Duty;
use atoll_proto::limits;
use atoll_proto::master::Status;

use super::children;
use super::layout::Layout;
use crate::commands::status;
use crate::connect::connect;
use crate::fetch::{Fetch, Head, Receiver, fetch, roots};
use crate::report::Failure;

/// How often the cluster is asked.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Waits until the cluster serves: everybody is there, every group has all its members, and every
/// one of these HTTPS ports answers. That groups move or are repaired does not keep it from that.
/// Returns a connection.
pub(crate) async fn until_serving(
    layout: &Layout,
    https: &[u16],
    bound: Duration,
    shutdown: &Shutdown,
) -> Result<Cluster, Failure> {
    let since = Instant::now();
    let config = ClientConfig::load(&layout.client_config())?;
    let mut cluster = None;
    let mut told = since;
    loop {
        let why = match serving(&config, &mut cluster).await {
            Ok(None) => match answering(layout, https).await {
                Ok(()) => break,
                Err(failure) => failure.to_string(),
            },
            Ok(Some(why)) => why,
            Err(failure) => failure.to_string(),
        };
        if since.elapsed() > bound {
            let seconds = bound.as_secs();
            return Err(Failure::Failed(format!(
                "the cluster does not serve after {seconds} s: {why}; its logs are in {}",
                layout.data().join("logs").display()
            )));
        }
        if shutdown.is_triggered() {
            return Err(Failure::Failed("stopped while the cluster was starting".to_owned()));
        }
        if told.elapsed() > children::TELL_EVERY {
            told = Instant::now();
            children::tell(&format!("waiting until the cluster serves: {why}"));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    cluster.ok_or_else(|| Failure::Failed("not connected".to_owned()))
}

/// Why the cluster does not serve yet; `None` when it does.
async fn serving(
    config: &ClientConfig,
    cluster: &mut Option<Cluster>,
) -> Result<Option<String>, Failure> {
    let cluster = match cluster {
        Some(cluster) => cluster,
        None => cluster.insert(connect(config).await?),
    };
    let status = status::ask(cluster).await?;
    if let Some(reason) = missing(&status) {
        return Ok(Some(reason));
    }
    let view = cluster.refresh_view().await?;
    let active = status.chunkservers.iter().filter(|server| server.duty == Duty::Active).count();
    let expected = active.min(limits::REPLICAS);
    let complete = view.table.members.iter().all(|members| members.len() >= expected);
    Ok((!complete).then(|| "the placement table is not complete".to_owned()))
}

/// Who is missing.
fn missing(status: &Status) -> Option<String> {
    if !status.masters.iter().any(|master| master.role == "leader") {
        return Some("no master leads".to_owned());
    }
    if status.chunkservers.is_empty() {
        return Some("there are no chunkservers".to_owned());
    }
    // One that is gone is expected not to be there.
    let expected = status.chunkservers.iter().filter(|server| server.duty != Duty::Gone);
    if let Some(server) = expected.into_iter().find(|server| !server.up) {
        return Some(format!("{} is down", server.name));
    }
    status.edges.iter().find_map(|edge| status::edge_reason(edge, status.publish_seq))
}

struct Ignore;

impl Receiver for Ignore {
    fn head(&mut self, _head: &Head) -> Result<(), Failure> {
        Ok(())
    }

    fn data(&mut self, _bytes: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
}

/// Whatever status they give, edges must answer with a certificate that a visitor accepts.
async fn answering(layout: &Layout, https: &[u16]) -> Result<(), Failure> {
    let roots = Arc::new(roots(Some(&layout.web_ca().join("ca.pem")), false)?);
    for port in https {
        let url = format!("https://ready.localhost:{port}/");
        let request = Fetch {
            method: http::Method::GET,
            url: url.parse().map_err(|error| Failure::failed(&url, error))?,
            addrs: vec![super::ready::local(*port)],
            version: None,
            headers: Vec::new(),
            roots: roots.clone(),
        };
        fetch(&request, &mut Ignore).await?;
    }
    Ok(())
}
