//! What an edge does past its lease is what the site's policy says, and what a publish waits for
//! and says follows from that.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::http::{Answer, Version};
use atoll_testbed::{DevCluster, Node, seed, wait};
use serde_json::{Value, json};

use super::{number, text, word};

const PATH: &str = "/version.txt";
/// Leases last ten seconds, and machines are slow.
const PATIENCE: Duration = Duration::from_secs(100);
/// What the site of this policy serves on for: long enough to be seen on a slow machine.
const BOUNDED: &str = "bounded=15";
const SITES: [(&str, &str); 3] = [("firm", "strict"), ("while", BOUNDED), ("always", "available")];

fn version(cluster: &DevCluster, text: &str) -> Result<PathBuf> {
    let folder = cluster.work().join(text);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(&PATH[1..]), text)?;
    Ok(folder)
}

fn create_sites(cluster: &DevCluster) -> Result<()> {
    for (site, policy) in SITES {
        cluster.atoll(&["site", "create", site, "--policy", policy])?.ok()?;
    }
    Ok(())
}

fn edge_addr(cluster: &DevCluster, edge: Node) -> Result<SocketAddr> {
    Ok(cluster.ready().edge(edge).context("there is that edge")?.https)
}

/// Answers for a site, asked again and again until one is as it should be.
async fn until(
    cluster: &DevCluster,
    edge: SocketAddr,
    site: &str,
    what: &str,
    good: impl Fn(&Answer) -> bool,
) -> Result<Vec<Answer>> {
    let began = Instant::now();
    let mut answers = Vec::new();
    loop {
        // A connection may be closed meanwhile, which is no answer.
        if let Ok(mut visitor) = cluster.visit(Version::H2, edge, site).await
            && let Ok(answer) = visitor.get(PATH).await
        {
            let enough = good(&answer);
            answers.push(answer);
            if enough {
                return Ok(answers);
            }
        }
        if began.elapsed() > PATIENCE {
            bail!("{site}: {what}: not within {PATIENCE:?}; last: {:?}", answers.last());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn late(answer: &Answer) -> bool {
    answer.status == 200 && answer.header("cache-status").contains("detail=lease-expired")
}

fn refused(answer: &Answer) -> bool {
    answer.status == 503 && !answer.header("retry-after").is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_masters_each_site_is_served_as_its_policy_says() -> Result<()> {
    let cluster =
        DevCluster::builder().masters(1).edges(1).shields(0).seed(seed::or(41)).start()?;
    create_sites(&cluster)?;
    let one = version(&cluster, "one")?;
    for (site, _) in SITES {
        cluster.deploy(&one, site)?;
    }
    let told = cluster.json(&["site", "show", "while"])?;
    ensure!(told["policy"] == BOUNDED, "{told}");
    let edge = edge_addr(&cluster, Node::edge(1))?;
    for (site, _) in SITES {
        until(&cluster, edge, site, "it is served", |answer| answer.status == 200).await?;
    }

    cluster.kill9(Node::master(1))?;
    // All at once, as each has its own time: that is what is tested.
    let (firm, some, always) = tokio::join!(
        until(&cluster, edge, "firm", "503 once the lease has ended", refused),
        until(&cluster, edge, "while", "503 once its time is over too", refused),
        until(&cluster, edge, "always", "it says that its lease has ended", late),
    );
    let (firm, some, always) = (firm?, some?, always?);
    ensure!(!firm.iter().any(late), "served on past the lease: {firm:?}");
    ensure!(some.iter().any(late), "not served on past the lease: {:?}", some.last());
    for answer in firm.iter().chain(&some).chain(&always) {
        ensure!(answer.status == 503 || answer.body == "one", "{answer:?}");
    }
    let mut visitor = cluster.visit(Version::H3, edge, "always").await?;
    let answer = visitor.get(PATH).await?;
    ensure!(late(&answer) && answer.body == "one", "{answer:?}");

    cluster.start_node(Node::master(1))?;
    for (site, _) in SITES {
        let whole = |answer: &Answer| answer.status == 200 && !late(answer);
        until(&cluster, edge, site, "all is well again", whole).await?;
    }
    cluster.wait_healthy()?;
    cluster.finish()
}

fn publish(cluster: &DevCluster, folder: &Path, site: &str, more: &[&str]) -> Result<(i32, Value)> {
    let mut words = vec!["deploy", word(folder), "--site", site, "--json"];
    words.extend(more);
    let outcome = cluster.atoll(&words)?;
    let code = outcome.code.context("it ended by itself")?;
    let done = outcome.last().with_context(|| format!("{outcome}"))?;
    cluster.tell(format_args!("{site}: exit {code}: {done}"));
    Ok((code, done))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_says_of_a_frozen_edge_what_its_policy_promises() -> Result<()> {
    let cluster = DevCluster::builder().edges(2).shields(0).seed(seed::or(42)).start()?;
    create_sites(&cluster)?;
    let (one, two) = (version(&cluster, "one")?, version(&cluster, "two")?);
    for (site, _) in SITES {
        cluster.deploy(&one, site)?;
    }
    let (well, frozen) = (edge_addr(&cluster, Node::edge(1))?, Node::edge(2));
    let frozen_addr = edge_addr(&cluster, frozen)?;
    cluster.freeze(frozen)?;

    // It may answer for ever, and nobody can know: that is said, by name.
    let (code, done) = publish(&cluster, &two, "always", &["--timeout", "2"])?;
    ensure!(code == 6 && done["edges_unreached"] == json!(["edge-2"]), "{code}: {done}");
    ensure!(number(&done, "edges_acked") == 1 && done["edges_down"] == json!([]), "{done}");
    let (code, done) =
        publish(&cluster, &one, "always", &["--timeout", "1", "--wait", "reachable"])?;
    ensure!(code == 0 && done["edges_unreached"] == json!(["edge-2"]), "{code}: {done}");
    // The end of leases is waited for, whatever the time that was given.
    for site in ["firm", "while"] {
        let (code, done) = publish(&cluster, &two, site, &["--timeout", "1"])?;
        ensure!(code == 0 && done["edges_down"] == json!(["edge-2"]), "{code}: {done}");
        ensure!(done["edges_unreached"] == json!([]), "{done}");
        let mut visitor = cluster.visit(Version::H2, well, site).await?;
        ensure!(visitor.get(PATH).await?.body == "two");
    }

    cluster.thaw(frozen)?;
    for site in ["firm", "while"] {
        // The first answer of all: 503 until it has caught up, and never what was before.
        let newer = |answer: &Answer| answer.status == 200;
        let answers = until(&cluster, frozen_addr, site, "it has caught up", newer).await?;
        let stale = answers.iter().find(|answer| answer.body == "one");
        ensure!(stale.is_none(), "{stale:?}");
    }
    // It takes part again.
    wait::until("a publish is confirmed by both", PATIENCE, || {
        let (code, done) = publish(&cluster, &two, "always", &["--timeout", "5"])?;
        Ok((code == 0 && number(&done, "edges_acked") == 2).then_some(()))
    })?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_is_off_for_good_is_forgotten_and_no_other() -> Result<()> {
    let cluster = DevCluster::builder().edges(2).shields(0).seed(seed::or(43)).start()?;
    create_sites(&cluster)?;
    let one = version(&cluster, "one")?;
    cluster.deploy(&one, "always")?;
    let outcome = cluster.atoll(&["node", "rm", "edge-2"])?.expect_code(4)?;
    ensure!(outcome.stderr.contains("atoll node rm edge-2 --force"), "{outcome}");
    let outcome = cluster.atoll(&["node", "rm", "edge-2", "--force"])?.expect_code(4)?;
    ensure!(outcome.stderr.contains("stop it, and try again in"), "{outcome}");
    // Refusing it changed nothing.
    let (code, done) = publish(&cluster, &one, "always", &["--wait", "all"])?;
    ensure!(code == 0 && number(&done, "edges_acked") == 2, "{code}: {done}");

    cluster.kill9(Node::edge(2))?;
    let (code, done) = publish(&cluster, &one, "always", &["--timeout", "1"])?;
    ensure!(code == 6 && done["edges_unreached"] == json!(["edge-2"]), "{code}: {done}");
    wait::until("its lease has ended", PATIENCE, || {
        Ok(cluster.atoll(&["node", "rm", "edge-2", "--force"])?.ok().ok())
    })?;
    let (code, done) = publish(&cluster, &one, "always", &["--timeout", "1"])?;
    ensure!(code == 0 && number(&done, "edges") == 1, "{code}: {done}");
    let listed = cluster.atoll(&["node", "ls", "--json"])?.ok()?;
    ensure!(!String::from_utf8_lossy(&listed.stdout).contains("edge-2"), "{listed}");
    let status = cluster.atoll(&["status", "--json"])?.ok()?.last()?;
    ensure!(text(&status["edges"][0], "name") == "edge-1", "{status}");
    // What is removed stays away: no publish would wait for it.
    cluster.start_node(Node::edge(2)).ok();
    let log = || cluster.node_log(Node::edge(2));
    wait::holds("it is told so", PATIENCE, || log().contains("never used again"))?;
    let addr = edge_addr(&cluster, Node::edge(2))?;
    until(&cluster, addr, "always", "it answers nothing", refused).await?;
    cluster.finish()
}

#[test]
fn edges_are_named_also_when_the_masters_cannot_be_asked() -> Result<()> {
    let cluster = DevCluster::builder().edges(2).shields(0).seed(seed::or(45)).start()?;
    // The edge that is frozen may serve on for longer than the test needs.
    cluster.atoll(&["site", "create", "firm", "--policy", "bounded=100"])?.ok()?;
    let one = version(&cluster, "one")?;
    let first = cluster.deploy(&one, "firm")?;
    let (edge, master) = (Node::edge(1), Node::master(1));
    cluster.freeze(edge)?;
    let two = version(&cluster, "two")?;
    let words =
        ["deploy", word(&two), "--site", "firm", "--wait", "all", "--timeout", "5", "--json"];
    let deploying = cluster.start_atoll(&words)?;
    wait::until("the second deploy is committed", PATIENCE, || {
        let listed = cluster.json(&["deploys", "firm"])?;
        let live = |deploy: &&Value| deploy["aliases"] == json!(["production"]);
        let deploys = listed["deploys"].as_array().context("deploys")?;
        let now = deploys.iter().find(live).context("a live deploy")?;
        Ok((now["deploy"] != first["deploy"]).then_some(()))
    })?;
    cluster.freeze(master)?;
    let told = deploying.finish(PATIENCE)?.expect_code(6)?;
    ensure!(told.last()?["edges_unreached"] == json!(["edge-1", "edge-2"]), "{told}");
    for said in ["edge-1, edge-2", "masters cannot be asked"] {
        ensure!(told.stderr.contains(said), "{said}: {told}");
    }
    cluster.thaw(master)?;
    cluster.thaw(edge)?;
    cluster.wait_healthy()?;
    cluster.finish()
}
