//! A backup brings the metadata back, and nothing that it does not know of is lost by it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use rustix::fs::XattrFlags;
use serde_json::Value;

use super::{ensure_served_everywhere, number, word};

const LIMIT: Duration = Duration::from_secs(60);
/// Three thousand groups move, 256 at a time.
const DRAIN_LIMIT: Duration = Duration::from_secs(240);

/// The status, whether healthy or not.
fn status(cluster: &DevCluster) -> Result<Value> {
    let outcome = cluster.atoll(&["status", "--json"])?;
    Ok(serde_json::from_slice(&outcome.stdout)?)
}

/// Chunks on all chunkservers, copies counted.
fn copies(status: &Value) -> u64 {
    let servers = status["chunkservers"].as_array().into_iter().flatten();
    servers.map(|server| number(server, "chunks")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_backup_serves_the_old_state_and_keeps_what_it_does_not_know() -> Result<()> {
    let seed = seed::or(21);
    let cluster = DevCluster::builder().masters(1).seed(seed).start()?;
    let (old, new) = (Tree::ordinary(seed, 30), Tree::ordinary(seed + 1, 30));
    let source = cluster.work().join("site");
    old.write(&source)?;
    cluster.deploy(&source, "blog")?;
    cluster.atoll(&["upload", word(&source.join("index.html")), "/kept.html"])?.ok()?;
    let mount = cluster.work().join("mount");
    std::fs::create_dir(&mount)?;
    cluster.atoll(&["mount", word(&mount)])?.ok()?;
    let (kept, pipe) = (mount.join("kept.html"), mount.join("pipe"));
    rustix::fs::setxattr(&kept, "user.note", b"as it was", XattrFlags::empty())?;
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o640));
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0)?;
    let file = cluster.work().join("backup");
    let made = cluster.json(&["backup", word(&file)])?;
    rustix::fs::setxattr(&kept, "user.note", b"and later", XattrFlags::empty())?;
    std::fs::remove_file(&pipe)?;
    cluster.atoll(&["umount", word(&mount)])?.ok()?;
    ensure!(number(&made, "bytes") == std::fs::metadata(&file)?.len(), "{made}");

    // More happens, and will be lost.
    let second = cluster.work().join("second");
    new.write(&second)?;
    cluster.deploy(&second, "blog")?;
    cluster.atoll(&["upload", word(&second.join("index.html")), "/lost.html"])?.ok()?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    let before = wait::until("every copy is counted", LIMIT, || {
        let status = status(&cluster)?;
        let live = number(&status["chunks"], "live");
        let copies = copies(&status);
        Ok((copies >= 3 * live).then_some(copies))
    })?;

    cluster.tell("the master's data is lost and restored");
    let master = Node::master(1);
    let data = cluster.ready().data(master).context("a data directory")?.to_owned();
    cluster.stop_node(master)?;
    let restore = ["restore", word(&file), "--data", word(&data)];
    let refused = cluster.atoll(&restore)?.expect_code(1)?;
    ensure!(refused.stderr.contains("not empty"), "{refused}");
    std::fs::rename(&data, cluster.work().join("lost-master"))?;
    cluster.atoll(&restore)?.ok()?;
    cluster.start_node(master)?;

    // The edges go back with it; everything is up, and frozen.
    wait::until("the restored cluster is well but for the freeze", LIMIT, || {
        let status = status(&cluster)?;
        let reasons = status["reasons"].as_array().context("reasons")?;
        let frozen = |reason: &Value| {
            let text = reason.as_str().unwrap_or_default();
            text.starts_with("collection is frozen: restored from a backup of")
        };
        if reasons.len() == 1 && frozen(&reasons[0]) { Ok(Some(())) } else { bail!("{status}") }
    })?;
    ensure_served_everywhere(&cluster, "blog", &old, &[Version::H2, Version::H3]).await?;
    cluster.atoll(&["cat", "/kept.html"])?.ok()?;
    cluster.atoll(&["cat", "/lost.html"])?.expect_code(1)?;
    // Also what only a mount can make.
    cluster.atoll(&["mount", word(&mount)])?.ok()?;
    let mut note = [0; 9];
    ensure!(rustix::fs::getxattr(&kept, "user.note", &mut note[..])? == 9 && &note == b"as it was");
    ensure!(std::fs::symlink_metadata(&pipe)?.file_type().is_fifo(), "the pipe is back");
    cluster.atoll(&["umount", word(&mount)])?.ok()?;
    // Servers tell the new leader what they have one after the other.
    wait::until("every copy is still there", LIMIT, || {
        let after = copies(&status(&cluster)?);
        if after >= before { Ok(Some(())) } else { bail!("{after} copies of {before}") }
    })?;

    // What the lost history had is still there: deploying it again sends only what is not known,
    // and everything works as before.
    cluster.deploy(&second, "blog")?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    let held = cluster.json(&["collection", "status"])?;
    ensure!(held["frozen"].as_str().is_some_and(|it| it.contains("restored")), "{held}");
    cluster.atoll(&["collection", "release"])?.ok()?;
    cluster.wait_healthy()?;
    cluster.restart(master)?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    cluster.finish()
}

/// Chunks on each chunkserver, by its id.
fn held(status: &Value) -> BTreeMap<u64, u64> {
    let servers = status["chunkservers"].as_array().into_iter().flatten();
    servers.map(|server| (number(server, "id"), number(server, "chunks"))).collect()
}

/// Some files of an uploaded tree, from the chunkservers.
fn ensure_some_kept(cluster: &DevCluster, at: &str, tree: &Tree) -> Result<()> {
    for (path, content) in tree.files.iter().take(12) {
        let path = std::str::from_utf8(path)?;
        let found = cluster.atoll(&["cat", &format!("{at}/{path}")])?.ok()?;
        ensure!(found.stdout == *content, "{at}/{path} differs");
    }
    Ok(())
}

/// Hundreds of chunks are not known any more, in more groups than may move at a time: they are in
/// nobody's way, and nobody deletes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_drained_after_a_restore_and_what_is_not_known_stays() -> Result<()> {
    let seed = seed::or(23);
    let cluster = DevCluster::builder().chunkservers(4).seed(seed).start()?;
    let (old, new) = (Tree::ordinary(seed, 40), Tree::ordinary(seed + 1, 450));
    let (first, second) = (cluster.work().join("first"), cluster.work().join("second"));
    old.write(&first)?;
    new.write(&second)?;
    cluster.deploy(&first, "blog")?;
    cluster.atoll(&["upload", word(&first), "/tree"])?.ok()?;
    cluster.wait_healthy()?;
    let file = cluster.work().join("backup");
    cluster.json(&["backup", word(&file)])?;
    cluster.deploy(&second, "blog")?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    cluster.wait_healthy()?;
    let before = wait::until("every copy is counted", LIMIT, || {
        let status = status(&cluster)?;
        let live = number(&status["chunks"], "live");
        Ok((copies(&status) >= 3 * live).then_some(status))
    })?;

    cluster.tell("the master's data is lost and restored");
    let master = Node::master(1);
    let data = cluster.ready().data(master).context("a data directory")?.to_owned();
    cluster.stop_node(master)?;
    std::fs::rename(&data, cluster.work().join("lost-master"))?;
    cluster.atoll(&["restore", word(&file), "--data", word(&data)])?.ok()?;
    cluster.start_node(master)?;
    let frozen_only = || {
        let status = status(&cluster)?;
        let reasons = status["reasons"].as_array().context("reasons")?;
        let frozen = |reason: &Value| {
            reason.as_str().is_some_and(|it| it.starts_with("collection is frozen"))
        };
        if reasons.len() == 1 && frozen(&reasons[0]) { Ok(Some(status)) } else { bail!("{status}") }
    };
    wait::until("the restored cluster is well but for the freeze", LIMIT, frozen_only)?;

    let mut drain = cluster.start_atoll(&["node", "drain", "chunkserver-2", "--wait", "--json"])?;
    wait::until("the server is drained", DRAIN_LIMIT, || {
        if drain.ended()? {
            return Ok(Some(()));
        }
        bail!("{}", status(&cluster)?["reasons"])
    })?;
    let drained = drain.finish(Duration::from_secs(5))?.ok()?.last()?;
    ensure!(number(&drained, "groups") == 0 && number(&drained, "groups_leaving") == 0);

    // Everything known is where it should be, and whatever was anywhere still is.
    let after = wait::until("all is well but for the freeze", LIMIT, frozen_only)?;
    ensure_served_everywhere(&cluster, "blog", &old, &[Version::H2]).await?;
    ensure_some_kept(&cluster, "/tree", &old)?;
    let (had, has) = (held(&before), held(&after));
    ensure!(had.len() == 4, "{before}");
    for (id, chunks) in &had {
        let now = has.get(id).copied().unwrap_or(0);
        ensure!(now >= *chunks, "chunkserver-{id} had {chunks} chunks, and has {now}");
    }
    let quarantined = |status: &Value| number(&status["chunks"], "quarantined");
    ensure!(quarantined(&after) <= quarantined(&before), "{after}");

    // What is not known becomes known again, and is whole.
    cluster.deploy(&second, "blog")?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    wait::until("all is well but for the freeze", LIMIT, frozen_only)?;
    cluster.atoll(&["collection", "release"])?.ok()?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "blog", &new, &[Version::H2]).await?;
    ensure_some_kept(&cluster, "/tree", &old)?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_is_refused_and_changes_nothing() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(22)).start()?;
    let file = cluster.work().join("backup");
    cluster.atoll(&["backup", word(&file)])?.ok()?;
    let whole = std::fs::read(&file)?;
    let data = cluster.work().join("restored");
    let restore = ["restore", word(&file), "--data", word(&data)];
    for (what, bytes) in [
        ("cut", whole[..whole.len() - 1].to_vec()),
        ("flipped", {
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            bytes
        }),
        ("empty", Vec::new()),
    ] {
        std::fs::write(&file, bytes)?;
        let refused = cluster.atoll(&restore)?.expect_code(1)?;
        ensure!(refused.stderr.contains("backup"), "{what}: {refused}");
        ensure!(!data.exists(), "{what}: something was written");
    }
    std::fs::write(&file, &whole)?;
    cluster.atoll(&restore)?.ok()?;
    ensure!(data.join("master.json").exists());
    // A file that cannot be written, and one that is there already.
    cluster.atoll(&["backup", "/nowhere/at/all"])?.expect_code(1)?;
    cluster.atoll(&["backup", word(&file)])?.ok()?;
    cluster.finish()
}
