//! fsck says that all is well when it is, and what is not when it is not.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_proto::manifest::Page;
use atoll_proto::namespace::{NamespaceQuery, NamespaceReply};
use atoll_proto::{ByteName, ChunkId, Content};
use atoll_testbed::faults::files;
use atoll_testbed::tree::random;
use atoll_testbed::volume::Volume;
use atoll_testbed::{DevCluster, Fault, Node, Outcome, Tree, checks, seed, wait};
use bytes::Bytes;

use super::membership::listed;
use super::{number, text, word};

const LIMIT: Duration = Duration::from_secs(60);
/// For what begins only once a server was silent for long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes by which a chunk is found on a disk.
const MARK: usize = 64;
/// The chunkservers of a cluster that has as many as copies.
const SERVERS: [u64; 3] = [1, 2, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_is_clean_and_a_server_that_is_down_is_named() -> Result<()> {
    let seed = seed::or(23);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::ordinary(seed, 40);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "blog")?;
    cluster.atoll(&["upload", word(&source), "/files"])?.ok()?;
    let clean = wait::until("a clean cluster", LIMIT, || Ok(Some(cluster.json(&["fsck"])?)))?;
    ensure!(clean["clean"] == true && number(&clean, "deploys") == 1, "{clean}");
    ensure!(number(&clean, "files") == tree.files.len() as u64, "{clean}");
    ensure!(number(&clean, "references") > number(&clean, "files"), "{clean}");

    let repaired = cluster.json(&["fsck", "--repair", "--timeout", "90"])?;
    ensure!(repaired["clean"] == true, "{repaired}");
    let recount = &repaired["recount"];
    ensure!(number(recount, "raised") + number(recount, "created") == 0, "{repaired}");
    ensure!(number(recount, "lowered") == 0, "{repaired}");
    let scrubbed = cluster.json(&["scrub", "--wait", "--timeout", "60"])?;
    ensure!(scrubbed["complete"] == true && number(&scrubbed, "corrupt_found") == 0, "{scrubbed}");

    let fault = Fault::Kill(Node::chunkserver(2));
    fault.apply(&cluster)?;
    wait::until("fsck to name the server", LIMIT, || {
        let outcome = cluster.atoll(&["fsck"])?.expect_code(1)?;
        Ok(outcome.text().contains("chunkserver-2 is down").then_some(()))
    })?;
    fault.undo(&cluster)?;
    cluster.wait_healthy()?;
    wait::until("a clean cluster", LIMIT, || Ok(Some(cluster.json(&["fsck"])?)))?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_finds_what_is_bad_on_every_server_and_names_who_needs_it() -> Result<()> {
    let seed = seed::or(24);
    let cluster = DevCluster::builder().edges(1).shields(1).seed(seed).start()?;
    let mut tree = Tree::ordinary(seed, 10);
    let mut rng = seed::rng(seed);
    for number in 0..3 {
        tree.put(&format!("heavy/{number}.bin"), random(&mut rng, 300_000));
    }
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "blog")?;
    cluster.atoll(&["upload", word(&source), "/files"])?.ok()?;

    let victim = tree.content("heavy/1.bin").context("it was put")?.clone();
    turn_a_bit_everywhere(&cluster, &[victim])?;
    let repaired =
        cluster.atoll(&["fsck", "--repair", "--timeout", "90", "--json"])?.expect_code(1)?;
    let done = repaired.last()?;
    ensure!(done["clean"] == false && number(&done, "lost") == 1, "{repaired}");
    let named = named(&repaired)?;
    let of_deploy = |(problem, path): &(String, String)| {
        problem == "lost" && path.starts_with("site blog, ") && path.ends_with(": heavy/1.bin")
    };
    ensure!(named.contains(&("lost".to_owned(), "/files/heavy/1.bin".to_owned())), "{repaired}");
    ensure!(named.len() == 2 && named.iter().any(of_deploy), "{repaired}");
    // Without a repair it is known now.
    cluster.atoll(&["fsck"])?.expect_code(1)?;

    for (path, content) in &tree.files {
        let path = std::str::from_utf8(path)?;
        let found = cluster.atoll(&["cat", &format!("/files/{path}")])?;
        if path == "heavy/1.bin" {
            ensure!(found.code != Some(0), "{path} can be read: {found}");
        } else {
            ensure!(found.ok()?.stdout == *content, "{path} differs");
        }
    }
    cluster.atoll(&["deploy", word(&source), "--site", "blog", "--reupload"])?.ok()?;
    wait::until("a clean cluster", LIMIT * 4, || {
        Ok(Some(cluster.json(&["fsck", "--repair", "--timeout", "90"])?))
    })?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_or_list_that_nobody_can_read_is_named_and_the_rest_looked_at() -> Result<()> {
    let seed = seed::or(25);
    let cluster = DevCluster::builder().edges(1).shields(1).seed(seed).start()?;
    let mut rng = seed::rng(seed);
    let source = cluster.work().join("site");
    Tree::ordinary(seed, 200).write(&source)?;
    let deployed = cluster.deploy(&source, "blog")?;
    let volume = Volume::connect(&cluster).await?;
    // More chunks than a file has in place.
    let parts = (0..1100).map(|_| random(&mut rng, 40)).collect();
    volume.put_parts("/parts.bin", parts).await?;
    let other = random(&mut rng, 5000);
    volume.put("/other.bin", other.clone()).await?;

    let page = largest_leaf(&volume, text(&deployed, "deploy").parse()?).await?;
    let list = list_of(&volume, "/parts.bin").await?;
    turn_a_bit_everywhere(&cluster, &[page, list])?;
    for arguments in
        [&["fsck", "--json"][..], &["fsck", "--repair", "--timeout", "90", "--json"][..]]
    {
        let checked = cluster.atoll(arguments)?.expect_code(1)?;
        let done = checked.last()?;
        ensure!(done["clean"] == false && number(&done, "lost") == 2, "{checked}");
        ensure!(number(&done, "files") == 2 && number(&done, "deploys") == 1, "{checked}");
        let named = named(&checked)?;
        let of_deploy = |(problem, path): &(String, String)| {
            problem == "lost" && path.starts_with("site blog, deploy ")
        };
        ensure!(named.contains(&("lost".to_owned(), "/parts.bin".to_owned())), "{checked}");
        ensure!(named.len() == 2 && named.iter().any(of_deploy), "{checked}");
    }
    ensure!(volume.get("/other.bin").await? == Some(other), "/other.bin differs");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_for_good_is_no_trouble_once_others_took_over() -> Result<()> {
    let seed = seed::or(26);
    let cluster = DevCluster::builder().chunkservers(4).edges(1).shields(1).seed(seed).start()?;
    let source = cluster.work().join("site");
    Tree::ordinary(seed, 40).write(&source)?;
    cluster.deploy(&source, "blog")?;
    // The shortest that a master takes: a server counts as down only then.
    let config = cluster.data().join("config/master-1.toml");
    let lines = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("replace_after_ms = 6000\n{lines}"))?;
    cluster.restart(Node::master(1))?;
    cluster.wait_healthy()?;

    cluster.kill9(Node::chunkserver(4))?;
    wait::until("others take over", PATIENCE, || {
        let four = listed(&cluster, "chunkserver-4")?;
        let groups = number(&four, "groups") + number(&four, "groups_leaving");
        let over = four["duty"] == "gone" && groups == 0;
        if over { Ok(Some(())) } else { bail!("{four}") }
    })?;
    wait::until("a healthy cluster", PATIENCE, || {
        let status = cluster.atoll(&["status"])?;
        if status.code == Some(0) { Ok(Some(())) } else { bail!("{status}") }
    })?;
    let four = listed(&cluster, "chunkserver-4")?;
    ensure!(four["state"] == "down" && four["duty"] == "gone", "{four}");
    let clean = wait::until("a clean cluster", LIMIT, || Ok(Some(cluster.json(&["fsck"])?)))?;
    ensure!(clean["clean"] == true && number(&clean, "deploys") == 1, "{clean}");
    cluster.finish()
}

/// The problems and paths that were found.
fn named(outcome: &Outcome) -> Result<BTreeSet<(String, String)>> {
    let events = outcome.events()?;
    let found = events.iter().filter(|event| event["event"] == "finding");
    let both = found.map(|it| (text(it, "problem").to_owned(), text(it, "path").to_owned()));
    Ok(both.collect())
}

/// Turns one bit of each of these chunks on every chunkserver, while none of them runs: no copy can
/// be mended from another.
fn turn_a_bit_everywhere(cluster: &DevCluster, chunks: &[Bytes]) -> Result<()> {
    let ready = cluster.ready();
    for id in SERVERS {
        Fault::Stop(Node::chunkserver(id)).apply(cluster)?;
    }
    for id in SERVERS {
        let data = ready.data(Node::chunkserver(id)).context("a data directory")?;
        for bytes in chunks {
            let middle = bytes.len() / 2;
            ensure!(bytes.len() >= middle + MARK, "a chunk of {} bytes", bytes.len());
            let found = files::find(data, &bytes[middle..middle + MARK])?;
            let mut turned = 0;
            for (path, at) in &found {
                // A log of what has been written to its place is not read again.
                if path.extension().is_some_and(|ending| ending == "segment" || ending == "blob") {
                    files::turn_bit(path, *at)?;
                    turned += 1;
                }
            }
            ensure!(turned > 0, "no copy below {}: {found:?}", data.display());
        }
    }
    for id in SERVERS {
        Fault::Start(Node::chunkserver(id)).apply(cluster)?;
    }
    // Not until all is well: something may have noticed already.
    wait::until("every chunkserver is up and compared", LIMIT, || {
        let status = checks::status(cluster)?;
        let reasons = status["reasons"].as_array().context("reasons")?;
        let waits = |reason: &str| reason.contains("is down") || reason.contains("been compared");
        let waits = reasons.iter().any(|reason| reason.as_str().is_some_and(waits));
        if waits { bail!("{status}") } else { Ok(Some(())) }
    })
}

/// The bytes of the longest leaf page of a deploy.
async fn largest_leaf(volume: &Volume, deploy: ChunkId) -> Result<Bytes> {
    let mut left = vec![deploy];
    let mut leaves: Vec<Bytes> = Vec::new();
    while let Some(id) = left.pop() {
        let bytes = volume.client().read_chunk(id).await?;
        match Page::decode(&bytes)? {
            Page::RootV1(root) => left.extend(root.top.map(|child| child.id)),
            Page::IndexV1(children) => left.extend(children.iter().map(|child| child.id)),
            Page::LeafV1(_) => leaves.push(bytes),
        }
    }
    leaves.into_iter().max_by_key(Bytes::len).context("a leaf page")
}

/// The bytes of the list of chunks of a file that has one.
async fn list_of(volume: &Volume, path: &str) -> Result<Bytes> {
    let client = volume.client();
    let query = NamespaceQuery::Resolve { path: ByteName(path.as_bytes().to_vec()) };
    let NamespaceReply::Attr { attr, .. } = client.query(query).await? else {
        bail!("{path}: an answer of another kind");
    };
    let query = NamespaceQuery::Open { inode: attr.inode };
    let NamespaceReply::File { content: Content::Lists { lists, .. }, .. } =
        client.query(query).await?
    else {
        bail!("{path} has no list");
    };
    let (_, id) = lists.first().context("a list")?;
    Ok(client.read_chunk(*id).await?)
}
