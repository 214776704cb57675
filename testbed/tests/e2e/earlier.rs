//! A deploy never breaks an open page: what it loads stays reachable under its name, and what
//! nobody has is an honest 404. And previews: hosts of aliases and of deploys, and their end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::{Answer, Version};
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use serde_json::Value;

use super::{text, word};

const SITE: &str = "shop";
/// Chunks an edge has asked a shield or chunkserver for.
const FETCHED: &str = "atoll_edge_upstream_chunks_total";
/// Names that no deploy has, asked for from each edge.
const RANDOM: usize = 1500;
/// Generous: a deadline here is a hang, not slowness.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A site as a build tool makes it: pages under fixed names, scripts under new ones each time.
fn build(seed: u64, version: usize) -> Tree {
    let mut tree = Tree::ordinary(seed, 40);
    let page = format!("<!doctype html><script src=/assets/app-v{version}.js></script>");
    tree.put("index.html", page.clone());
    tree.put("page.html", page);
    tree.put(&format!("only-{version}.html"), "<!doctype html>a page of its own");
    tree.put(&format!("assets/app-v{version}.js"), format!("export default {version};"));
    tree.put(&format!("assets/style-v{version}.css"), format!("/* {version} */"));
    tree
}

struct Shop {
    cluster: DevCluster,
    seed: u64,
}

impl Shop {
    fn start(seed: u64) -> Result<Self> {
        Ok(Self { cluster: DevCluster::builder().seed(seed).start()?, seed })
    }

    /// Deploys a version with these arguments beside; gives the final object.
    fn deploy(&self, version: usize, arguments: &[&str]) -> Result<Value> {
        let source = self.cluster.work().join(format!("v{version}"));
        build(self.seed, version).write(&source)?;
        let mut line = vec!["deploy", word(&source), "--site", SITE, "--create"];
        line.extend(arguments);
        self.cluster.json(&line)
    }

    async fn get(&self, edge: SocketAddr, host: &str, path: &str) -> Result<Answer> {
        self.cluster.visit(Version::H2, edge, host).await?.get(path).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_page_keeps_its_scripts_over_three_deploys() -> Result<()> {
    let shop = Shop::start(seed::or(31))?;
    let first = shop.deploy(1, &[])?;
    let (_, edge) = shop.cluster.edges().remove(0);
    let open = shop.get(edge, SITE, "/").await?;
    ensure!(open.body.windows(6).any(|part| part == b"app-v1"), "{open:?}");
    for version in 2..=4 {
        shop.deploy(version, &[])?;
    }
    for (name, edge) in shop.cluster.edges() {
        for version in Version::ALL {
            let mut visitor = shop.cluster.visit(version, edge, SITE).await?;
            let script = visitor.get("/assets/app-v1.js").await?;
            ensure!(
                script.status == 200 && script.body == "export default 1;",
                "{name}: {script:?}"
            );
            ensure!(script.header("content-type").starts_with("text/javascript"), "{script:?}");
            ensure!(script.header("atoll-deploy") == text(&first, "deploy"), "{script:?}");
            let style = visitor.get("/assets/style-v2.css").await?;
            ensure!(style.header("content-type").starts_with("text/css"), "{style:?}");
            let current = visitor.get("/").await?;
            ensure!(current.body.windows(6).any(|part| part == b"app-v4"), "{current:?}");
            // Pages are of the current deploy alone.
            for path in ["/only-1.html", "/only-1", "/only-3.html"] {
                let page = visitor.get(path).await?;
                ensure!(page.status == 404, "{name}: {path}: {page:?}");
            }
            let unknown = visitor.get("/assets/app-v9.js").await?;
            ensure!(unknown.status == 404, "{name}: {unknown:?}");
            ensure!(!unknown.header("content-type").contains("html"), "{name}: {unknown:?}");
            ensure!(!unknown.body.contains(&b'<'), "{name}: {unknown:?}");
            ensure!(script.header("x-robots-tag").is_empty(), "production: {script:?}");
        }
    }

    // Going back leaves nobody behind either.
    shop.cluster.json(&["rollback", SITE])?;
    let script = shop.get(edge, SITE, "/assets/app-v4.js").await?;
    ensure!(script.status == 200 && script.body == "export default 4;", "{script:?}");

    random_names_stay_at_the_edges(&shop).await?;
    the_owner_decides(&shop, edge, &first).await?;
    shop.cluster.finish()
}

/// Any number of names that nobody has moves nothing, also at an edge that has just begun with nothing,
/// and although each of them is looked up in every earlier deploy.
async fn random_names_stay_at_the_edges(shop: &Shop) -> Result<()> {
    let new = Node::edge(1);
    shop.cluster.stop_node(new)?;
    let data = shop.cluster.ready().data(new).context("it has a data directory")?.to_owned();
    for name in ["cache", "index.snapshot"] {
        std::fs::rename(data.join(name), shop.cluster.work().join(format!("old-{name}")))?;
    }
    shop.cluster.start_node(new)?;
    // What production points at, and three of before.
    wait::until("the new edge has the pages of four deploys", TIMEOUT, || {
        let warmed = shop.cluster.metric(new, "atoll_edge_deploys_warmed_total")?;
        Ok((warmed >= 4.0).then_some(()))
    })?;
    for (number, (name, edge)) in (1..).zip(shop.cluster.edges()) {
        let mut visitor = shop.cluster.visit(Version::H2, edge, SITE).await?;
        let fetched = || shop.cluster.metric(Node::edge(number), FETCHED);
        let before = fetched()?;
        for random in 0..RANDOM {
            let path = format!("/assets/{:08x}.{}", random * 2_654_435, ["js", "png"][random % 2]);
            let answer = visitor.get(&path).await?;
            ensure!(answer.status == 404, "{name}: {path}: {answer:?}");
        }
        let after = fetched()?;
        ensure!(before == after, "{name} fetched {} chunks", after - before);
    }
    Ok(())
}

/// Limits count when the command returns, and a removed deploy answers nothing.
async fn the_owner_decides(shop: &Shop, edge: SocketAddr, first: &Value) -> Result<()> {
    let path = "/assets/app-v1.js";
    let status = async || anyhow::Ok(shop.get(edge, SITE, path).await?.status);
    ensure!(status().await? == 200);
    // When `site set` has returned, it is so.
    let limits =
        [("count", "0", 404), ("count", "10", 200), ("days", "0", 404), ("days", "7", 200)];
    for (limit, value, wanted) in limits {
        let limit = format!("--earlier-{limit}");
        shop.cluster.json(&["site", "set", SITE, &limit, value])?;
        let is = status().await?;
        ensure!(is == wanted, "after {limit} {value}, {path} is {is}");
    }
    shop.cluster.atoll(&["deploys", "rm", SITE, text(first, "deploy")])?.ok()?;
    ensure!(status().await? == 404);
    // What is gone is nothing that an alias points at.
    let (gone, source) = (text(first, "deploy"), shop.cluster.work().join("v1"));
    for gone in [gone, &gone[..12]] {
        let line = ["deploy", word(&source), "--site", SITE, "--if-current", gone];
        shop.cluster.atoll(&line)?.expect_code(4)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn previews_have_hosts_of_their_own_and_end() -> Result<()> {
    let shop = Shop::start(seed::or(32))?;
    shop.deploy(1, &[])?;
    let refused = shop.cluster.work().join("v1");
    shop.cluster
        .atoll(&["deploy", word(&refused), "--site", SITE, "--expires", "7d"])?
        .expect_code(2)?;
    let kept = shop.deploy(2, &["--alias", "pr-7", "--expires", "7d"])?;
    let brief = shop.deploy(3, &["--alias", "brief", "--expires", "2s", "--wait", "none"])?;
    let (_, edge) = shop.cluster.edges().remove(0);

    // Every URL that was told leads there, by names that certificates cover.
    let digits = &text(&kept, "deploy")[..12];
    let hosts = [format!("pr-7--{SITE}"), format!("{digits}--{SITE}")];
    for (field, host) in [("preview_url", &hosts[0]), ("deploy_url", &hosts[1])] {
        ensure!(text(&kept, field).starts_with(&format!("https://{host}.")), "{kept}");
        for version in Version::ALL {
            let mut visitor = shop.cluster.visit(version, edge, host).await?;
            let answer = visitor.get("/assets/app-v2.js").await?;
            ensure!(
                answer.status == 200 && answer.body == "export default 2;",
                "{host}: {answer:?}"
            );
            ensure!(answer.header("x-robots-tag") == "noindex", "{host}: {answer:?}");
            let missing = visitor.get("/nothing").await?;
            ensure!(missing.status == 404, "{host}: {missing:?}");
            ensure!(missing.header("x-robots-tag") == "noindex", "{host}: {missing:?}");
        }
    }
    let page = shop.get(edge, &hosts[1], "/").await?;
    ensure!(page.header("cache-control").contains("immutable"), "{page:?}");
    let page = shop.get(edge, &hosts[0], "/").await?;
    ensure!(!page.header("cache-control").contains("immutable"), "{page:?}");
    let production = shop.get(edge, SITE, "/").await?;
    ensure!(production.header("x-robots-tag").is_empty(), "{production:?}");

    // An alias ends, its deploy stays, and the others go on.
    wait::until("the alias is gone", TIMEOUT, || {
        let shown = shop.cluster.json(&["site", "show", SITE])?;
        let aliases = shown["aliases"].as_array().context("a list")?.clone();
        let gone = aliases.iter().all(|alias| alias["alias"] != "brief");
        Ok(gone.then_some(()))
    })?;
    for (_, edge) in shop.cluster.edges() {
        let until = std::time::Instant::now() + TIMEOUT;
        while shop.get(edge, &format!("brief--{SITE}"), "/").await?.status != 404 {
            ensure!(std::time::Instant::now() < until, "an edge serves an alias that ended");
        }
        let host = format!("{}--{SITE}", &text(&brief, "deploy")[..12]);
        let answer = shop.get(edge, &host, "/assets/app-v3.js").await?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(shop.get(edge, &hosts[0], "/").await?.status == 200);
    }
    let shown = shop.cluster.json(&["site", "show", SITE])?;
    let aliases = shown["aliases"].as_array().context("a list")?;
    ensure!(aliases.iter().filter(|alias| alias["expires_ms"].is_u64()).count() == 1, "{shown}");
    let listed = shop.cluster.json(&["deploys", SITE])?;
    let listed = listed["deploys"].as_array().context("a list")?;
    let preview = listed.iter().find(|deploy| deploy["deploy"] == kept["deploy"]);
    let preview = &preview.context("listed")?["previews"][0];
    ensure!(preview["url"] == kept["preview_url"] && preview["expires_ms"].is_u64(), "{preview}");
    shop.cluster.finish()
}
