//! Unchanged bytes never move: a redeploy uploads what changed, and no edge fetches anything else
//! again. And the history of deploys: rollback, promote, lists, differences, the race of two.

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{DevCluster, Node, Tree, seed};
use serde_json::Value;

use super::{ensure_served_everywhere, number, text, word};

const SITE: &str = "docs";
/// Chunks an edge has asked a shield or chunkserver for.
const FETCHED: &str = "atoll_edge_upstream_chunks_total";
/// Their bytes.
const FETCHED_BYTES: &str = "atoll_edge_upstream_bytes_total";

fn scrapes(cluster: &DevCluster) -> Result<Vec<(Node, Scrape)>> {
    let nodes = [Node::edge(1), Node::edge(2), Node::shield(1)];
    nodes.into_iter().map(|node| Ok((node, cluster.scrape(node)?))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redeploy_moves_only_what_changed() -> Result<()> {
    let seed = seed::or(2);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let mut tree = Tree::ordinary(seed, 1500);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    let first = cluster.deploy(&source, SITE)?;
    ensure!(number(&first, "chunks_uploaded") > 1400, "{first}");
    ensure_served_everywhere(&cluster, SITE, &tree, &[Version::H1]).await?;
    let before = scrapes(&cluster)?;
    for (node, scrape) in &before {
        let names: Vec<&str> = scrape.names().collect();
        ensure!(scrape.sum(FETCHED) > 0.0, "{node} counts no {FETCHED} among {names:?}");
    }

    let again = cluster.deploy(&source, SITE)?;
    ensure!(number(&again, "chunks_uploaded") == 0, "unchanged: {again}");
    ensure!(number(&again, "pages_uploaded") == 0, "unchanged: {again}");
    ensure!(text(&again, "deploy") == text(&first, "deploy"), "unchanged: {again}");

    tree.put("version.txt", "changed");
    tree.write(&source)?;
    let changed = cluster.deploy(&source, SITE)?;
    let pages = number(&changed, "pages_uploaded");
    ensure!(number(&changed, "chunks_uploaded") == 1, "one file: {changed}");
    ensure!((1..=4).contains(&pages), "a few pages: {changed}");
    ensure!(number(&changed, "bytes_uploaded") < 200_000, "one file: {changed}");

    ensure_served_everywhere(&cluster, SITE, &tree, &[Version::H1, Version::H2, Version::H3])
        .await?;
    for ((node, before), (_, after)) in before.iter().zip(scrapes(&cluster)?) {
        let grown = after.grown_since(before);
        let fetched = after.sum(FETCHED) - before.sum(FETCHED);
        // One chunk and the changed pages; an edge may have asked twice where it hedged.
        ensure!(fetched <= 2.0 * (1 + pages) as f64, "{node} fetched {fetched}: {grown:#?}");
        let bytes = after.sum(FETCHED_BYTES) - before.sum(FETCHED_BYTES);
        ensure!(bytes < 300_000.0, "{node} fetched {bytes} bytes: {grown:#?}");
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_can_be_walked_and_races_have_one_winner() -> Result<()> {
    let seed = seed::or(3);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let mut trees = Vec::new();
    let mut deploys: Vec<String> = Vec::new();
    for version in 1..=3 {
        let mut tree = Tree::ordinary(seed, 20);
        tree.put("version.txt", format!("version {version}"));
        tree.put(&format!("only-in-{version}.txt"), "x");
        let source = cluster.work().join(format!("v{version}"));
        tree.write(&source)?;
        let done = cluster.deploy(&source, SITE)?;
        deploys.push(text(&done, "deploy").to_owned());
        trees.push(tree);
    }
    let listed = cluster.json(&["deploys", SITE])?.to_string();
    for deploy in &deploys {
        ensure!(listed.contains(deploy.as_str()), "{deploy} is not listed: {listed}");
    }
    let diff = cluster.atoll(&["deploys", "diff", SITE, &deploys[0], &deploys[1]])?.ok()?.text();
    for name in ["only-in-1.txt", "only-in-2.txt", "version.txt"] {
        ensure!(diff.contains(name), "{name} differs: {diff}");
    }
    ensure!(!diff.contains("404.html"), "404.html does not differ: {diff}");

    let back = cluster.json(&["rollback", SITE])?;
    ensure!(text(&back, "deploy") == deploys[1], "{back}");
    ensure_served_everywhere(&cluster, SITE, &trees[1], &[Version::H2]).await?;
    cluster.json(&["rollback", SITE, &deploys[0]])?;
    ensure_served_everywhere(&cluster, SITE, &trees[0], &[Version::H3]).await?;
    cluster.json(&["promote", SITE, &deploys[2]])?;
    ensure_served_everywhere(&cluster, SITE, &trees[2], &[Version::H1]).await?;

    // A preview has a name of its own and leaves production alone.
    let preview = cluster.work().join("v1");
    cluster.json(&["deploy", word(&preview), "--site", SITE, "--alias", "preview"])?;
    let (_, edge) = cluster.edges().remove(0);
    for (site, version) in [("preview--docs", "version 1"), (SITE, "version 3")] {
        let answer = cluster.visit(Version::H2, edge, site).await?.get("/version.txt").await?;
        ensure!(answer.body == version, "{site}: {answer:?}");
    }

    two_at_once(&cluster, &deploys[2])?;
    let wrong = cluster.work().join("v2");
    cluster
        .atoll(&["deploy", word(&wrong), "--site", SITE, "--if-current", &deploys[0]])?
        .expect_code(4)?;
    cluster.finish()
}

/// Two deploys that both replace `current`: one does, the other is told so.
fn two_at_once(cluster: &DevCluster, current: &str) -> Result<()> {
    let mut racers = Vec::new();
    for name in ["left", "right"] {
        let source = cluster.work().join(name);
        let mut tree = Tree::ordinary(9, 50);
        tree.put("version.txt", name);
        tree.write(&source)?;
        racers.push(source);
    }
    let running: Vec<_> = racers
        .iter()
        .map(|source| {
            let source = word(source);
            let arguments = ["deploy", source, "--site", SITE, "--if-current", current, "--json"];
            cluster.start_atoll(&arguments)
        })
        .collect::<Result<_>>()?;
    let mut won: Vec<Value> = Vec::new();
    let mut lost = 0;
    for racer in running {
        let outcome = racer.finish(std::time::Duration::from_secs(60))?;
        match outcome.code {
            Some(0) => won.push(outcome.last()?),
            Some(4) => {
                lost += 1;
                ensure!(outcome.stderr.contains(SITE), "says what and why: {outcome}");
            }
            _ => anyhow::bail!("{outcome}"),
        }
    }
    ensure!(won.len() == 1 && lost == 1, "{} won, {lost} lost", won.len());
    let shown = cluster.json(&["site", "show", SITE])?.to_string();
    let winner = won.first().context("one won")?;
    ensure!(shown.contains(text(winner, "deploy")), "{shown} is not {winner}");
    Ok(())
}
