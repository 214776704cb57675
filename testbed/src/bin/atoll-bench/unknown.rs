//! What URLs that do not exist make an edge ask of others: nothing, however many there are.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};

use crate::Scale;
use crate::table::{Report, Table, figure};

const SITE: &str = "unknown";
const FILES: usize = 5_000;
const URLS: usize = 100_000;
const CONNECTIONS: usize = 8;
/// Chunks, and with them pages and rules, that an edge asked others for.
const UPSTREAM: &str = "atoll_edge_upstream_chunks_total";
const WARMED: &str = "atoll_edge_deploys_warmed_total";
/// Until an edge has the pages of a deploy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures.
pub(crate) async fn measure(cluster: &DevCluster, scale: Scale, report: &mut Report) -> Result<()> {
    let node = Node::edge(1);
    let warmed = cluster.metric(node, WARMED)?;
    let source = cluster.work().join(SITE);
    site(scale.of(FILES)).write(&source)?;
    cluster.deploy(&source, SITE)?;
    wait::until("the edge to have the pages", PATIENCE, || {
        Ok((cluster.metric(node, WARMED)? > warmed).then_some(()))
    })?;
    let addr = cluster.ready().edge(node).context("there is an edge")?.https;

    let columns =
        ["URLs", "404", "redirects", "others", "requests/s", "upstream before", "upstream after"];
    let mut table = Table::new("URLs that do not exist", &columns);
    let each = scale.of(URLS).div_ceil(Version::ALL.len());
    for version in Version::ALL {
        let before = cluster.scrape(node)?;
        let began = Instant::now();
        let found = ask(cluster, version, addr, each).await?;
        let elapsed = began.elapsed().as_secs_f64();
        let after = cluster.scrape(node)?;
        let upstream = |scrape: &Scrape| format!("{:.0}", scrape.sum(UPSTREAM));
        table.row([
            format!("{each} over {version:?}"),
            found.missing.to_string(),
            found.redirects.to_string(),
            (each - found.missing - found.redirects).to_string(),
            figure(each as f64 / elapsed),
            upstream(&before),
            upstream(&after),
        ]);
    }
    table.note(format!(
        "A site of {} files with rules; URLs from a seed: names that do not exist beside those that \
         do, of any depth, with queries and escapes, an eighth of them under a redirect with a \
         wildcard. Upstream is `{UPSTREAM}` of the edge that is asked.",
        scale.of(FILES)
    ));
    report.add(table);
    Ok(())
}

fn site(files: usize) -> Tree {
    let mut tree = Tree::default();
    for number in 0..files {
        tree.put(&format!("d{}/page-{number}.html", number % 100), format!("page {number}"));
    }
    tree.put("404.html", "no such page");
    tree.put("_redirects", "/old/* /d0/:splat 302\n/* /app.html 404\n");
    tree.put("_headers", "/*\n  X-Frame-Options: DENY\n");
    tree
}

/// Statuses of the answers.
#[derive(Default)]
struct Found {
    missing: usize,
    redirects: usize,
}

async fn ask(
    cluster: &DevCluster,
    version: Version,
    addr: SocketAddr,
    count: usize,
) -> Result<Found> {
    let mut visitors = Vec::new();
    for number in 0..CONNECTIONS {
        let mut connection = cluster.visit(version, addr, SITE).await?;
        let share = count / CONNECTIONS + usize::from(number < count % CONNECTIONS);
        let mut rng = seed::rng(seed::or(7).wrapping_add(number as u64));
        visitors.push(tokio::spawn(async move {
            let mut found = Found::default();
            for _ in 0..share {
                let url = url(&mut rng);
                match connection.get(&url).await?.status {
                    404 => found.missing += 1,
                    302 => found.redirects += 1,
                    status => ensure!(status < 500, "{url}: {status}"),
                }
            }
            Ok(found)
        }));
    }
    let mut all = Found::default();
    for visitor in visitors {
        let found = visitor.await??;
        all.missing += found.missing;
        all.redirects += found.redirects;
    }
    Ok(all)
}

/// A URL that no file answers.
fn url(rng: &mut impl rand::Rng) -> String {
    let mut url = String::new();
    match rng.random_range(0..8) {
        0 => url.push_str("/old"),
        1..4 => url.push_str(&format!("/d{}", rng.random_range(0..100))),
        _ => {}
    }
    for _ in 0..rng.random_range(1..5) {
        url.push('/');
        for _ in 0..rng.random_range(4..16) {
            let letter = char::from(rng.random_range(b'a'..=b'z'));
            match rng.random_range(0..40) {
                0 => url.push_str("%20"),
                1 => url.push_str("%C3%A9"),
                _ => url.push(letter),
            }
        }
    }
    let ends = ["", "", "", "/", ".html", ".js", ".css", ".png", ".php", ".json"];
    url.push_str(ends[rng.random_range(0..ends.len())]);
    if rng.random_range(0..4) == 0 {
        url.push_str(&format!("?v={}", rng.random_range(0..1_000_000)));
    }
    url
}
