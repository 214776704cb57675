//! A change whose answer does not come was made, or never will be; and whoever asks learns which.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_client::{ClientConfig, Cluster, Unsure, Verdict};
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceQuery, NamespaceReply, NewNode};
use atoll_proto::{Code, InodeId};
use atoll_testbed::proxy::{Direction, Way};
use atoll_testbed::{DevCluster, InProcess, Node, Proxy, seed, wait};

fn mkdir(name: &str) -> NamespaceOp {
    NamespaceOp::Make {
        parent: InodeId::ROOT,
        name: name.into(),
        node: NewNode::Directory,
        mode: 0o755,
        umask: 0,
        caller: Caller { uid: 0, gid: 0 },
        exclusive: true,
    }
}

async fn is_there(client: &Cluster, name: &str) -> Result<bool> {
    match client.query(NamespaceQuery::Lookup { parent: InodeId::ROOT, name: name.into() }).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A change during which nothing passes in one direction.
async fn unanswered(cluster: &InProcess, cut: Direction, name: &str) -> Result<()> {
    let master = cluster.ready().masters.first().context("a master")?.addr;
    let link = Proxy::udp(master, seed::or(1)).await?;
    let mut config = ClientConfig::load(&cluster.ready().config)?;
    config.masters = vec![link.addr()];
    let client = Box::pin(Cluster::connect(&config, name)).await?;
    // The session is open, and whoever is sure has no doubt.
    let first = client.namespace_once(mkdir(&format!("{name}-first"))).await;
    let made = matches!(first, Ok(NamespaceReply::Attr { created: true, .. }));
    ensure!(made, "{first:?}");
    let again = client.namespace_once(mkdir(&format!("{name}-first"))).await;
    let refused = matches!(&again, Err(Unsure { error, undecided: None })
        if error.code() == Some(Code::Exists));
    ensure!(refused, "{again:?}");

    link.set(cut, Way::cut());
    let lost = client.namespace_once(mkdir(name)).await;
    let Err(Unsure { undecided: Some(undecided), .. }) = lost else {
        anyhow::bail!("no answer passes, and yet: {lost:?}");
    };
    ensure!(client.settle(&undecided).await.is_err(), "nobody can know yet");
    link.set(cut, Way::default());
    let verdict = client.settle(&undecided).await?;
    match (&verdict, cut) {
        (Verdict::Made(NamespaceReply::Attr { created: true, .. }), Direction::Back)
        | (Verdict::NotMade, Direction::There) => {}
        other => anyhow::bail!("{other:?}"),
    }
    let there = verdict != Verdict::NotMade;
    ensure!(is_there(&client, name).await? == there, "{verdict:?}");
    // Whatever comes after: the verdict stands, and so does what is there.
    client.namespace_once(mkdir(&format!("{name}-last"))).await.map_err(|unsure| unsure.error)?;
    ensure!(client.settle(&undecided).await? == verdict);
    ensure!(is_there(&client, name).await? == there, "{verdict:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_without_an_answer_is_made_once_or_never() -> Result<()> {
    let seed = seed::or(51);
    let builder = InProcess::builder().masters(1).chunkservers(3).edges(1).shields(0).seed(seed);
    let cluster = builder.start().await?;
    let (there, back) = tokio::join!(
        unanswered(&cluster, Direction::There, "there"),
        unanswered(&cluster, Direction::Back, "back"),
    );
    there.context("the request was lost")?;
    back.context("the answer was lost")?;
    cluster.finish().await
}

/// Records that each writer appends while leaders are killed.
const RECORDS: usize = 40;
/// Leaders that are killed meanwhile.
const KILLS: usize = 2;
/// How long a file may not be in the cluster, at the most.
const COMMITTED: Duration = Duration::from_secs(120);

fn leader(cluster: &DevCluster) -> Result<Option<Node>> {
    let status = cluster.json(&["status"])?;
    let masters = status["masters"].as_array().context("masters")?;
    let leader = masters.iter().find(|master| master["role"] == "leader");
    Ok(leader.and_then(|it| it["id"].as_u64()).map(Node::master))
}

fn record(mount: usize, n: usize) -> String {
    format!("<{mount} {n} {}>", "x".repeat(n * 7919 % 3000))
}

/// Appends until all is done; whatever fails is tried again, but nothing is written a second time.
fn append(log: &Path, mount: usize, done: &AtomicUsize) -> Result<()> {
    let mut file = File::options().append(true).open(log)?;
    for n in 0..RECORDS {
        file.write_all(record(mount, n).as_bytes())?;
        wait::holds("the record in the cluster", COMMITTED, || file.sync_all().is_ok())?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn appends_of_two_mounts_are_there_once_when_leaders_are_killed() -> Result<()> {
    let cluster = DevCluster::builder().masters(3).start()?;
    let mounts = ["one", "two"].map(|name| cluster.work().join(name));
    for mount in &mounts {
        fs::create_dir(mount)?;
        cluster.atoll(&["mount", super::word(mount)])?.ok()?;
    }
    fs::write(mounts[0].join("log"), "")?;
    wait::holds("the log on the other mount", COMMITTED, || mounts[1].join("log").exists())?;
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let (mounts, done) = (&mounts, &done);
        let writers: Vec<_> = (0..2)
            .map(|at| scope.spawn(move || append(&mounts[at].join("log"), at, done)))
            .collect();
        for kill in 1..=KILLS {
            // In the middle of the work, whenever that is.
            let enough = 2 * RECORDS * kill / (KILLS + 1);
            let reached = || {
                done.load(Ordering::Relaxed) >= enough
                    || writers.iter().any(|writer| writer.is_finished())
            };
            wait::holds("some records", COMMITTED, reached)?;
            let led = wait::until("a leader", COMMITTED, || Ok(leader(&cluster).ok().flatten()))?;
            cluster.kill9(led)?;
            cluster.start_node(led)?;
        }
        writers.into_iter().try_for_each(|writer| writer.join().expect("no writer panics"))
    })?;
    let text = fs::read_to_string(mounts[0].join("log"))?;
    let mut total = 0;
    for at in 0..2 {
        let mut from = 0;
        for record in (0..RECORDS).map(|n| record(at, n)) {
            let found = text[from..].find(&record);
            from += found.with_context(|| format!("{record} is missing"))? + record.len();
            total += record.len();
        }
    }
    ensure!(text.len() == total, "{} bytes instead of {total}: some twice", text.len());
    for mount in &mounts {
        cluster.atoll(&["umount", super::word(mount)])?.ok()?;
    }
    cluster.finish()
}
