//! End-to-end tests: the real binary, whole clusters, the contract of the outside.
//!
//! One promise or topic per file. Each test starts its own cluster through
//! [`atoll_testbed::DevCluster`]; `.config/nextest.toml` runs them two at a time. No test asserts
//! speed, none sleeps to wait, and a failure prints the seed, the command that repeats it and
//! where the cluster's data and logs are.

#![allow(clippy::unwrap_used, reason = "tests")]

mod backup;
mod bad_input;
mod dev;
mod dns;
mod dns_compliance;
mod durable;
mod earlier;
mod erase;
mod farewell;
mod files;
mod frozen;
mod fsck;
mod full_disk;
mod garbage;
mod in_process;
mod invalidate;
mod lease;
mod links;
mod live;
mod membership;
mod mount;
mod never_stale;
mod online;
mod posix;
mod programs;
mod publish;
mod race;
mod redeploy;
mod relay;
mod resume;
mod rules;
mod same_as_disk;
mod storage;
mod suites;
mod two_mounts;
mod unanswered;
mod verify;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_proto::Seq;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::PublishEvent;
use atoll_testbed::checks::Entry;
use atoll_testbed::http::{Connection, Version};
use atoll_testbed::tree::url_path;
use atoll_testbed::{DevCluster, Tree};
use serde_json::Value;

/// A field of a JSON object as a number.
fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("{field} is no number in {object}"))
}

/// A field of a JSON object as text.
fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("{field} is no text in {object}"))
}

/// A path as an argument.
fn word(path: &Path) -> &str {
    path.to_str().expect("paths of tests are plain text")
}

/// Bytes on disk of a folder.
fn disk_bytes(folder: &Path) -> u64 {
    let mut sum = 0;
    let mut queue = vec![folder.to_owned()];
    while let Some(folder) = queue.pop() {
        // Files come and go under a running process.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => queue.push(entry.path()),
                Ok(meta) => sum += meta.len(),
                Err(_) => {}
            }
        }
    }
    sum
}

/// Fetches every file of a tree over one connection and compares.
async fn ensure_served(connection: &mut Connection, tree: &Tree, what: &str) -> Result<()> {
    for (path, content) in &tree.files {
        let url = url_path(path);
        let answer = connection.get(&url).await.with_context(|| what.to_owned())?;
        ensure!(answer.status == 200, "{what}: {url}: status {}", answer.status);
        ensure!(
            answer.body == *content,
            "{what}: {url}: {} bytes expected, {} received, first difference at {:?}",
            content.len(),
            answer.body.len(),
            content.iter().zip(&answer.body).position(|(a, b)| a != b)
        );
    }
    Ok(())
}

/// The same from every edge, over these versions.
async fn ensure_served_everywhere(
    cluster: &DevCluster,
    site: &str,
    tree: &Tree,
    versions: &[Version],
) -> Result<()> {
    for (name, addr) in cluster.edges() {
        cluster.tell(format_args!("{site} is fetched from {name}"));
        for version in versions {
            let mut connection = cluster.visit(*version, addr, site).await?;
            let what = format!("{site} from {name} over {version:?}");
            ensure_served(&mut connection, tree, &what).await?;
        }
    }
    Ok(())
}

/// The publish log of a site, as the masters tell it.
async fn log_of(cluster: &DevCluster, site: &str) -> Result<Vec<Entry>> {
    let client = cluster.client().await?;
    let request = MasterRequest::Watch { after: Seq(0), edge: None, wait_ms: 0 };
    let deadline = std::time::Duration::from_secs(10);
    let MasterResponse::Log { entries, .. } = client.master(&request, deadline).await? else {
        bail!("the log is not kept from its start");
    };
    let entry = |entry: atoll_proto::publish::PublishEntry| match entry.event {
        PublishEvent::AliasSet(alias) if alias.site.as_str() == site => {
            Some(Entry { seq: entry.seq.0, deploy: alias.deploy.to_string() })
        }
        _ => None,
    };
    Ok(entries.into_iter().filter_map(entry).collect())
}

/// The number of the master that leads.
fn leader(cluster: &DevCluster) -> Result<u64> {
    let status = cluster.atoll(&["status", "--json"])?.last()?;
    let masters = status["masters"].as_array().cloned().unwrap_or_default();
    let leader = masters.iter().find(|master| master["role"] == "leader");
    leader.and_then(|leader| leader["id"].as_u64()).ok_or_else(|| anyhow::anyhow!("{status}"))
}
