//! What an edge serves can be checked against the id of a deploy, by who has the cluster's
//! configuration and by who has a proof only; and whether it should serve that.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, ensure};
use atoll_testbed::{DevCluster, Tree, seed};
use serde_json::Value;

use super::{text, word};

const SITE: &str = "proven";
/// A page and a script that one version has alone.
const PAGE: &str = "<!doctype html>of one version";
const SCRIPT: &str = "export default 1;";

fn site(version: usize) -> Tree {
    let mut tree = Tree::ordinary(7, 30);
    tree.put("index.html", format!("<!doctype html>front page {version}"));
    tree.put("a/page.html", "<!doctype html>a page");
    tree.put("a/index.html", "<!doctype html>a directory");
    tree.put("404.html", "<!doctype html>nothing here");
    tree.put(&format!("app-{version}.js"), format!("export default {version};"));
    tree.put(&format!("only-{version}.html"), PAGE);
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

    /// The exit code and what is said when an edge answers at this host with this file, of which
    /// `honest` is what was said when it was right.
    fn replayed(
        &self,
        host: &str,
        path: &str,
        honest: &Value,
        body: &'static str,
    ) -> Result<(Option<i32>, String)> {
        let field = |name| text(honest, name);
        let head = format!(
            "HTTP/1.1 200 OK\r\nAtoll-Deploy: {}\r\nETag: \"{}\"\r\nContent-Type: {}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            field("deploy"),
            field("etag"),
            field("content_type"),
            body.len()
        );
        let url = format!("http://{host}.localhost:{}{path}", stuck(head, body)?.port());
        let outcome = self.cluster.atoll(&["verify", url.as_str()])?;
        Ok((outcome.code, outcome.stderr.clone()))
    }

    /// What differs, which must be something.
    fn differs(&self, path: &str, arguments: &[&str]) -> Result<String> {
        let url = self.url(path);
        let outcome = self.cluster.atoll(&[&["verify", url.as_str()], arguments].concat())?;
        Ok(outcome.expect_code(1)?.stderr.clone())
    }
}

/// An edge that answers the same for ever, whatever it is asked for.
fn stuck(head: String, body: &'static str) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who goes away early has seen enough.
            drop(answer(&stream, &head, body));
        }
    });
    Ok(addr)
}

fn answer(mut stream: &TcpStream, head: &str, body: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    stream.write_all(head.as_bytes())?;
    if first.starts_with("HEAD ") { Ok(()) } else { stream.write_all(body.as_bytes()) }
}

#[test]
fn what_an_edge_should_not_serve_any_more_is_told_however_well_it_is_proven() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(42)).start()?;
    let (_, edge) = cluster.edges().remove(0);
    let site = Checked { cluster, edge };
    let first = site.deploy(1)?;
    let page = site.verify("/only-1.html", &[])?;
    let script = site.verify("/app-1.js", &[])?;
    ensure!(site.replayed(SITE, "/only-1.html", &page, PAGE)?.0 == Some(0), "it is current");
    let second = site.deploy(2)?;

    let own = |deploy: &str| format!("{}--{SITE}", &deploy[..12]);
    let preview = format!("pr-9--{SITE}");
    for (host, path, honest, body, word) in [
        (SITE, "/only-1.html", &page, PAGE, "points at deploy"),
        (preview.as_str(), "/only-1.html", &page, PAGE, "no such alias"),
        (own(&second).as_str(), "/only-1.html", &page, PAGE, "does not begin"),
        ("nobodys", "/app-1.js", &script, SCRIPT, "no such site"),
    ] {
        let (code, said) = site.replayed(host, path, honest, body)?;
        ensure!(code == Some(1) && said.contains(word), "{host}{path}: {code:?}: {said}");
    }
    // A script that open pages still load, and the deploy under its own name.
    let (code, said) = site.replayed(SITE, "/app-1.js", &script, SCRIPT)?;
    ensure!(code == Some(0), "{code:?}: {said}");
    let (code, said) = site.replayed(&own(&first), "/only-1.html", &page, PAGE)?;
    ensure!(code == Some(0), "{code:?}: {said}");
    let dotted = format!("https://{SITE}.localhost.:{}/", site.edge.port());
    let whole = site.cluster.json(&["verify", dotted.as_str()])?;
    ensure!(whole["current"] == true && text(&whole, "deploy") == second, "{whole}");

    // Ids: the start of one is enough, and one that the site does not have is told as such.
    let short = site.verify("/", &["--deploy", &second[..12]])?;
    ensure!(text(&short, "deploy") == second && short["current"].is_null(), "{short}");
    let mistyped = "a".repeat(64);
    let none = format!("no deploy of {SITE}");
    let differs = site.differs("/", &["--deploy", mistyped.as_str()])?;
    ensure!(differs.contains(&none), "{differs}");
    for line in [
        ["deploys", "diff", SITE, first.as_str(), mistyped.as_str()].as_slice(),
        &["rollback", SITE, mistyped.as_str()],
        &["promote", SITE, mistyped.as_str()],
    ] {
        let outcome = site.cluster.atoll(line)?.expect_code(1)?;
        ensure!(outcome.stderr.contains(&none), "{outcome}");
    }

    // What differs is no reference for later.
    let never = site.cluster.work().join("never.proof");
    site.differs("/", &["--deploy", &first, "--save-proof", word(&never)])?;
    ensure!(!never.exists(), "a proof was saved of what differs");

    // The site's limits count as they are now.
    site.cluster.json(&["site", "set", SITE, "--earlier-count", "0"])?;
    let (code, said) = site.replayed(SITE, "/app-1.js", &script, SCRIPT)?;
    ensure!(code == Some(1) && said.contains("points at deploy"), "{code:?}: {said}");
    site.cluster.finish()
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
