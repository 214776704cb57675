//! What an edge serves can be checked against the id of a deploy, by who has the cluster's
//! configuration and by who has a proof only.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Tree, seed};
use serde_json::Value;

use super::{text, word};

const SITE: &str = "proven";

fn site(version: usize) -> Tree {
    let mut tree = Tree::ordinary(7, 30);
    tree.put("index.html", format!("<!doctype html>front page {version}"));
    tree.put("a/page.html", "<!doctype html>a page");
    tree.put("a/index.html", "<!doctype html>a directory");
    tree.put("404.html", "<!doctype html>nothing here");
    tree.put(&format!("app-{version}.js"), format!("export default {version};"));
    tree.put("long.bin", vec![b'x'; 3 << 20]);
    tree
}

struct Checked {
    cluster: DevCluster,
    edge: SocketAddr,
}

impl Checked {
    fn deploy(&self, version: usize) -> Result<String> {
        let source = self.cluster.work().join(format!("v{version}"));
        site(version).write(&source)?;
        Ok(text(&self.cluster.deploy(&source, SITE)?, "deploy").to_owned())
    }

    fn url(&self, path: &str) -> String {
        format!("https://{SITE}.localhost:{}{path}", self.edge.port())
    }

    fn verify(&self, path: &str, arguments: &[&str]) -> Result<Value> {
        let url = self.url(path);
        self.cluster.json(&[&["verify", url.as_str()], arguments].concat())
    }

    /// What differs, which must be something.
    fn differs(&self, path: &str, arguments: &[&str]) -> Result<String> {
        let url = self.url(path);
        let outcome = self.cluster.atoll(&[&["verify", url.as_str()], arguments].concat())?;
        Ok(outcome.expect_code(1)?.stderr.clone())
    }
}

#[test]
fn answers_are_checked_against_the_deploy_and_older_ones_are_told() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(41)).start()?;
    let (_, edge) = cluster.edges().remove(0);
    let site = Checked { cluster, edge };
    let first = site.deploy(1)?;
    for (path, answer) in [
        ("/", "file"),
        ("/a/page", "file"),
        ("/app-1.js", "file"),
        ("/long.bin", "file"),
        ("/a", "redirect"),
        ("/nowhere", "absent"),
        ("/nowhere.js", "absent"),
    ] {
        let said = site.verify(path, &[])?;
        ensure!(text(&said, "answer") == answer && said["verified"] == true, "{path}: {said}");
        ensure!(text(&said, "deploy") == first && said["current"] == true, "{path}: {said}");
        ensure!(said["proof"]["source"] == "cluster", "{path}: {said}");
    }

    // A proof alone is enough.
    let saved = site.cluster.work().join("home.proof");
    site.verify("/", &["--save-proof", word(&saved)])?;
    let offline = site.verify("/", &["--proof", word(&saved)])?;
    ensure!(offline["proof"]["source"] == "file" && offline["verified"] == true, "{offline}");

    // Once another deploy is served, who insists on the first is told.
    let second = site.deploy(2)?;
    ensure!(text(&site.verify("/", &[])?, "deploy") == second, "the second is current");
    for arguments in [["--proof", word(&saved)], ["--deploy", first.as_str()]] {
        let differs = site.differs("/", &arguments)?;
        ensure!(differs.contains("Atoll-Deploy"), "{arguments:?}: {differs}");
    }
    // What an open page still loads is of the first, and proven to be.
    let earlier = site.verify("/app-1.js", &[])?;
    ensure!(text(&earlier, "deploy") == first && earlier["verified"] == true, "{earlier}");

    // A proof that was tampered with proves nothing.
    let mut bytes = std::fs::read(&saved)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&saved, &bytes)?;
    let differs = site.differs("/", &["--proof", word(&saved), "--deploy", &first])?;
    ensure!(differs.contains("proof"), "{differs}");
    site.cluster.finish()
}
