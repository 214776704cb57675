//! A live site serves what is in its directory: whoever changes it, whatever leads, and what users
//! go back to stays until the directory changes again.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};

use super::{ensure_served_everywhere, leader, text, word};

const SITE: &str = "blog";
const LIVE: &str = "/sites/blog";
const TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until every edge answers a path with this body, or with 404 when there is none.
async fn served(cluster: &DevCluster, path: &str, expected: Option<&str>) -> Result<()> {
    let start = Instant::now();
    for (name, edge) in cluster.edges() {
        loop {
            let last = match cluster.visit(Version::H1, edge, SITE).await {
                Ok(mut visitor) => match visitor.get(path).await {
                    Ok(answer) if answer.status == 404 && expected.is_none() => break,
                    Ok(answer) if expected.is_some_and(|body| answer.body == body) => break,
                    other => format!("{other:?}"),
                },
                Err(error) => format!("{error:#}"),
            };
            if start.elapsed() > TIMEOUT {
                bail!("{name}: {path} should be {expected:?}: {last}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

fn upload(cluster: &DevCluster, name: &str, content: &str, to: &str) -> Result<()> {
    let file = cluster.work().join(name);
    fs::write(&file, content)?;
    cluster.atoll(&["upload", word(&file), &format!("{LIVE}/{to}")])?.ok().map(drop)
}

fn run(cluster: &DevCluster, arguments: &[&str]) -> Result<()> {
    cluster.atoll(arguments)?.ok().map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_site_serves_its_directory() -> Result<()> {
    let seed = seed::or(51);
    let cluster = DevCluster::builder().mounted().seed(seed).start()?;
    run(&cluster, &["site", "create", SITE, "--live", LIVE])?;
    let early = cluster.atoll(&["publish", SITE])?.expect_code(1)?;
    ensure!(early.stderr.contains("does not exist"), "{early}");

    run(&cluster, &["mkdir", "-p", &format!("{LIVE}/old")])?;
    upload(&cluster, "one", "one", "index.html")?;
    served(&cluster, "/", Some("one")).await?;
    upload(&cluster, "two", "two", "old/page.txt")?;
    served(&cluster, "/old/page.txt", Some("two")).await?;
    run(&cluster, &["mv", &format!("{LIVE}/old"), &format!("{LIVE}/new")])?;
    served(&cluster, "/new/page.txt", Some("two")).await?;
    served(&cluster, "/old/page.txt", None).await?;
    run(&cluster, &["rm", &format!("{LIVE}/new/page.txt")])?;
    served(&cluster, "/new/page.txt", None).await?;

    // Through the mount; once publish has returned, every edge has it.
    let directory = cluster.mount().join(&LIVE[1..]);
    fs::write(directory.join("index.html"), "from the mount")?;
    let published = cluster.json(&["publish", SITE])?;
    ensure!(published["edges_acked"] == published["edges"], "{published}");
    let tree = Tree::ordinary(seed, 200);
    tree.write(&directory.join("copied"))?;
    let done = cluster.json(&["publish", SITE])?;
    ensure!(text(&done, "alias") == "production", "{done}");
    let mut expected = Tree::default();
    expected.put("index.html", "from the mount");
    for (path, content) in &tree.files {
        let path = [&b"copied/"[..], path].concat();
        expected.files.insert(path, content.clone());
    }
    ensure_served_everywhere(&cluster, SITE, &expected, &[Version::H2]).await?;
    let again = cluster.json(&["publish", SITE])?;
    ensure!(text(&again, "deploy") == text(&done, "deploy"), "nothing changed: {again}");

    refused(&cluster).await?;
    cluster.wait_healthy()?;
    cluster.finish()
}

/// What cannot be served is named, and the last good deploy stays.
async fn refused(cluster: &DevCluster) -> Result<()> {
    let link = cluster.mount().join(&LIVE[1..]).join("leak");
    std::os::unix::fs::symlink("../../elsewhere", &link)?;
    let refused = cluster.atoll(&["publish", SITE])?.expect_code(1)?;
    ensure!(refused.stderr.contains("leak"), "names it: {refused}");
    let status = cluster.atoll(&["status"])?;
    ensure!(status.code != Some(0) && status.text().contains("leak"), "{status}");
    served(cluster, "/", Some("from the mount")).await?;
    fs::remove_file(&link)?;
    upload(cluster, "after", "after", "index.html")?;
    served(cluster, "/", Some("after")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_of_a_live_site_stays_whoever_leads_until_the_next_change() -> Result<()> {
    let seed = seed::or(52);
    let cluster = DevCluster::builder().masters(3).edges(1).seed(seed).start()?;
    run(&cluster, &["site", "create", SITE, "--live", LIVE])?;
    run(&cluster, &["mkdir", "-p", LIVE])?;
    for body in ["one", "two"] {
        upload(&cluster, body, body, "index.html")?;
        cluster.json(&["publish", SITE])?;
        served(&cluster, "/", Some(body)).await?;
    }
    cluster.json(&["rollback", SITE])?;
    served(&cluster, "/", Some("one")).await?;

    let led = leader(&cluster)?;
    cluster.kill9(Node::master(led))?;
    wait::until("another master leads", TIMEOUT, || {
        Ok(leader(&cluster).ok().filter(|leader| *leader != led))
    })?;
    // What the new leader seals of another site comes after it has compared this one.
    run(&cluster, &["site", "create", "other", "--live", "/sites/other"])?;
    run(&cluster, &["mkdir", "-p", "/sites/other"])?;
    cluster.json(&["publish", "other"])?;
    served(&cluster, "/", Some("one")).await?;

    upload(&cluster, "three", "three", "index.html")?;
    served(&cluster, "/", Some("three")).await?;
    // Whether the leader has sealed this before it is gone or not.
    upload(&cluster, "four", "four", "index.html")?;
    cluster.start_node(Node::master(led))?;
    let led = leader(&cluster)?;
    cluster.kill9(Node::master(led))?;
    served(&cluster, "/", Some("four")).await?;
    cluster.start_node(Node::master(led))?;
    cluster.json(&["rollback", SITE])?;
    served(&cluster, "/", Some("three")).await?;
    cluster.finish()
}
