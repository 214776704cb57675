//! An upload that was cut goes on where it stopped.

use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Tree, seed, wait};

use super::{disk_bytes, ensure_served_everywhere, number, word};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_upload_sends_only_the_rest() -> Result<()> {
    let seed = seed::or(8);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let mut rng = seed::rng(seed);
    let mut tree = Tree::default();
    for file in 0..28 {
        tree.put(&format!("big/{file}.bin"), random(&mut rng, 8 << 20));
    }
    tree.put("index.html", "big");
    let total = tree.bytes();
    let source = cluster.work().join("site");
    tree.write(&source)?;

    let data: Vec<_> = cluster.ready().chunkservers.into_iter().map(|c| c.data).collect();
    let stored = || data.iter().map(|data| disk_bytes(data)).sum::<u64>();
    let before = stored();
    let arguments = ["deploy", word(&source), "--site", "big", "--create", "--json"];
    let mut first = cluster.start_atoll(&arguments)?;
    // At least a third of three copies has arrived.
    wait::until("a good part is uploaded", Duration::from_secs(120), || {
        Ok((first.ended()? || stored() > before + 3 * 80 * MIB).then_some(()))
    })?;
    ensure!(!first.ended()?, "the upload was over before it could be cut");
    first.kill9()?;
    let cut = first.finish(Duration::from_secs(10))?;
    ensure!(cut.signal == Some(9), "{cut}");
    let shown = cluster.atoll(&["site", "show", "big", "--json"])?;
    ensure!(!shown.text().contains("production"), "nothing is published: {shown}");

    let done = cluster.json(&arguments[..5])?;
    let sent = number(&done, "bytes_uploaded");
    ensure!(sent > 0 && sent < total - 32 * MIB, "{sent} of {total} bytes again: {done}");
    ensure_served_everywhere(&cluster, "big", &tree, &[Version::H2]).await?;
    cluster.finish()
}
