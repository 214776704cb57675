//! What was taken down is nowhere: no edge serves it, no disk has it, nobody brings it back; and
//! whoever was away when it happened does the same when it returns.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, seed, wait};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::{leader, number, text, word};

const SITE: &str = "blog";
const OTHER: &str = "shop";
/// Generous: a deadline here is a hang, not slowness.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes by which a content is looked for on disks.
const MARKER: usize = 64;
/// The secret files: one for segment files, one for blob files, one for tables; and the second once
/// more, under another name.
const SECRETS: [&str; 4] = ["secret/large.bin", "secret/medium.bin", "secret/tiny.bin", "copy.bin"];

struct Takedown {
    cluster: DevCluster,
    source: PathBuf,
    shop: PathBuf,
    secrets: Vec<Bytes>,
    public: Bytes,
}

impl Takedown {
    /// Two deploys of a site with the secrets, a third that was forgotten, and a site that has the tiny
    /// one too.
    fn start(seed: u64) -> Result<(Self, Value)> {
        let cluster = DevCluster::builder().masters(1).seed(seed).start()?;
        let mut rng = seed::rng(seed);
        let mut secrets: Vec<Bytes> =
            [300_000, 10_000, 500].iter().map(|size| random(&mut rng, *size)).collect();
        secrets.push(secrets[1].clone());
        let public = random(&mut rng, 20_000);
        let (source, shop) = (cluster.work().join(SITE), cluster.work().join(OTHER));
        std::fs::create_dir_all(source.join("secret"))?;
        std::fs::create_dir_all(&shop)?;
        for (path, bytes) in SECRETS.iter().zip(&secrets) {
            std::fs::write(source.join(path), bytes)?;
        }
        std::fs::write(source.join("public.bin"), &public)?;
        std::fs::write(shop.join("same.bin"), &secrets[2])?;
        let first = cluster.deploy(&source, SITE)?;
        std::fs::write(source.join("index.html"), "a deploy to be forgotten")?;
        let forgotten = cluster.deploy(&source, SITE)?;
        std::fs::write(source.join("index.html"), "the second deploy")?;
        cluster.deploy(&source, SITE)?;
        cluster.atoll(&["deploys", "rm", SITE, text(&forgotten, "deploy")])?.ok()?;
        cluster.deploy(&shop, OTHER)?;
        Ok((Self { cluster, source, shop, secrets, public }, first))
    }

    /// What every edge answers at every secret path over every protocol, and that the public file is
    /// there.
    async fn ensure_answers(&self, status: u16, first: &Value) -> Result<()> {
        for (name, edge) in self.cluster.edges() {
            for version in [Version::H1, Version::H2, Version::H3] {
                self.ensure_answers_of(&name, edge, version, status, first).await?;
            }
        }
        Ok(())
    }

    async fn ensure_answers_of(
        &self,
        name: &str,
        edge: SocketAddr,
        version: Version,
        status: u16,
        first: &Value,
    ) -> Result<()> {
        let named = format!("{}--{SITE}", &text(first, "deploy")[..12]);
        for host in [SITE, &named] {
            let mut visitor = self.cluster.visit(version, edge, host).await?;
            for (path, bytes) in SECRETS.iter().zip(&self.secrets) {
                let path = format!("/{path}");
                for method in [Method::GET, Method::HEAD] {
                    let answer = visitor.send(method.clone(), &path, &[]).await?;
                    ensure!(
                        answer.status == status,
                        "{name} {version:?} {host} {method} {path}: status {}",
                        answer.status
                    );
                    let whole = status == 200 && method == Method::GET;
                    ensure!(!whole || answer.body == *bytes, "{name} {path}: wrong bytes");
                }
                let known = visitor.send(Method::GET, &path, &[("if-none-match", "*")]).await?;
                ensure!(known.status == if status == 200 { 304 } else { status }, "{known:?}");
            }
            let public = visitor.get("/public.bin").await?;
            ensure!(
                public.status == 200 && public.body == self.public,
                "{name}: {}",
                public.status
            );
        }
        let mut visitor = self.cluster.visit(version, edge, OTHER).await?;
        let same = visitor.get("/same.bin").await?;
        ensure!(same.status == status, "{name}: {}", same.status);
        Ok(())
    }

    fn holds(&self, node: Node, secret: &Bytes) -> bool {
        let folder = self.cluster.data().join("nodes").join(node.to_string());
        let middle = secret.len() / 2;
        holds(&folder, &secret[middle..middle + MARKER])
    }

    /// Waits until no secret is on the disks of these nodes.
    fn wait_clean(&self, nodes: &[Node]) -> Result<()> {
        for node in nodes {
            for (path, secret) in SECRETS.iter().zip(&self.secrets) {
                wait::holds(&format!("{path} is gone from {node}"), TIMEOUT, || {
                    !self.holds(*node, secret)
                })?;
            }
        }
        Ok(())
    }

    fn erase(&self, arguments: &[&str]) -> Result<atoll_testbed::process::Outcome> {
        let mut line = vec!["invalidate", SITE, "--prefix", "/secret/", "--json"];
        line.extend(arguments);
        self.cluster.tell(format_args!("{}", line.join(" ")));
        self.cluster.atoll(&line)
    }
}

/// Whether some file below a folder has these bytes.
fn holds(folder: &Path, marker: &[u8]) -> bool {
    let mut queue = vec![folder.to_owned()];
    while let Some(folder) = queue.pop() {
        // Files come and go under a running process.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                queue.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            if bytes.windows(marker.len()).any(|window| window == marker) {
                return true;
            }
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_erased_is_nowhere_and_does_not_come_back() -> Result<()> {
    let (takedown, first) = Takedown::start(seed::or(61))?;
    let cluster = &takedown.cluster;
    for _ in 0..3 {
        takedown.ensure_answers(200, &first).await?;
    }
    let (edges, shield) = ([Node::edge(1), Node::edge(2)], Node::shield(1));
    let servers = [1, 2, 3].map(Node::chunkserver);
    for secret in &takedown.secrets {
        for node in servers {
            wait::holds(&format!("a secret on the disk of {node}"), TIMEOUT, || {
                takedown.holds(node, secret)
            })?;
        }
    }
    for node in edges {
        wait::holds(&format!("a secret on the disk of {node}"), TIMEOUT, || {
            takedown.holds(node, &takedown.secrets[0])
        })?;
    }

    // Somebody else has the same bytes.
    let refused = takedown.erase(&["--erase"])?.expect_code(1)?;
    ensure!(refused.stderr.contains("site shop") && refused.stderr.contains("--everywhere"));
    // Also when it is the same site, at a path that is not named; or pages that no deploy has.
    for (path, other) in
        [("/copy.bin", "secret/medium.bin"), ("/secret/large.bin", "that no deploy has")]
    {
        let line = ["invalidate", SITE, "--path", path, "--erase"];
        let refused = cluster.atoll(&line)?.expect_code(1)?;
        ensure!(refused.stderr.contains(other), "{path}: {refused}");
        ensure!(refused.stderr.contains("nothing is erased"), "{path}: {refused}");
    }
    let planned = takedown.erase(&["--erase", "--dry-run"])?.ok()?.last()?;
    ensure!(number(&planned, "chunks") == 3, "{planned}");
    takedown.ensure_answers(200, &first).await?;

    // With one server and one edge away.
    let (away, dark) = (Node::chunkserver(3), edges[1]);
    cluster.stop_node(away)?;
    cluster.stop_node(dark)?;
    let part = takedown.erase(&["--erase", "--everywhere", "--timeout", "15"])?.expect_code(6)?;
    for node in [away, dark] {
        ensure!(part.stderr.contains(&node.to_string()), "{part}");
    }
    let told = part.last()?;
    // Two deploys and the pages of the forgotten one with four paths each, and the other site.
    let places = told["places"].as_array().context("places")?;
    let of_no_site = places.iter().filter(|place| place["site"].is_null()).count();
    ensure!(places.len() == 13 && of_no_site == 4, "{told}");
    ensure!(number(&told, "chunks") == 3, "{told}");
    ensure!(number(&told, "bytes") == 310_500, "{told}");
    let confirmed = |told: &Value| {
        let servers = told["chunkservers"].as_array().cloned().unwrap_or_default();
        servers.iter().filter(|server| server["confirmed"] == true).count()
    };
    ensure!(confirmed(&told) == 2, "{told}");
    let named = |told: &Value, list: &str, node: Node| {
        let names = told[list].as_array().cloned().unwrap_or_default();
        names.iter().any(|name| name == &Value::from(node.to_string()))
    };
    for (list, node) in
        [("edges_pending", dark), ("edges_confirmed", edges[0]), ("edges_confirmed", shield)]
    {
        ensure!(named(&told, list, node), "{node} in {list}: {told}");
    }
    for (name, edge) in cluster.edges().iter().filter(|(name, _)| *name != dark.to_string()) {
        takedown.ensure_answers_of(name, *edge, Version::H2, 410, &first).await?;
    }
    // Confirmed means gone, at that moment.
    for node in [edges[0], shield] {
        for secret in &takedown.secrets {
            ensure!(!takedown.holds(node, secret), "{node} has bytes");
        }
    }
    let here = [Node::chunkserver(1), Node::chunkserver(2), edges[0], edges[1], shield];
    takedown.wait_clean(&here[..3])?;

    // They do the same when they are back, and then all have confirmed.
    cluster.start_node(away)?;
    cluster.start_node(dark)?;
    takedown.ensure_answers(410, &first).await?;
    let whole = takedown.erase(&["--erase", "--everywhere"])?.ok()?.last()?;
    ensure!(confirmed(&whole) == 3, "{whole}");
    ensure!(named(&whole, "edges_confirmed", dark), "{whole}");
    takedown.wait_clean(&[away])?;
    takedown.wait_clean(&here)?;

    // Restarts bring nothing back, and nothing looks damaged.
    for node in [edges[0], Node::chunkserver(1)] {
        cluster.restart(node)?;
    }
    cluster.wait_healthy()?;
    takedown.ensure_answers(410, &first).await?;
    takedown.wait_clean(&here)?;
    let checked = wait::until("fsck finds nothing wrong", TIMEOUT, || {
        let checked = cluster.atoll(&["fsck", "--json"])?;
        Ok((checked.code == Some(0)).then_some(checked))
    })?;
    let findings = checked.events()?;
    let erased = |event: &&Value| event["problem"] == "erased";
    ensure!(findings.iter().filter(erased).count() == 9, "{checked}");
    ensure!(number(&checked.last()?, "erased") == 3, "{checked}");

    // The same bytes again, whatever they are called.
    for (folder, site) in [(&takedown.source, SITE), (&takedown.shop, OTHER)] {
        let line = ["deploy", word(folder), "--site", site];
        let refused = cluster.atoll(&line)?.expect_code(1)?;
        ensure!(
            refused.stderr.contains("taken down") && refused.stderr.contains(".bin"),
            "{refused}"
        );
        ensure!(refused.stderr.contains("--unerase"), "{refused}");
    }
    let again = takedown.source.join(SECRETS[0]);
    let refused = cluster.atoll(&["upload", word(&again), "/again.bin"])?.expect_code(1)?;
    ensure!(refused.stderr.contains("erased"), "{refused}");
    takedown.wait_clean(&here)?;

    // Until that is allowed.
    takedown.erase(&["--unerase"])?.ok()?;
    cluster.deploy(&takedown.source, SITE)?;
    takedown.ensure_answers(200, &first).await?;
    cluster.wait_healthy()?;
    takedown.cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_erased_after_a_backup_may_come_back_with_it() -> Result<()> {
    let (takedown, first) = Takedown::start(seed::or(62))?;
    let cluster = &takedown.cluster;
    let file = cluster.work().join("backup");
    cluster.json(&["backup", word(&file)])?;
    takedown.ensure_answers(200, &first).await?;
    takedown.erase(&["--erase", "--everywhere"])?.ok()?;
    takedown.ensure_answers(410, &first).await?;

    cluster.tell("the masters are restored as they were before");
    let master = Node::master(1);
    let data = cluster.ready().data(master).context("a data directory")?.to_owned();
    cluster.stop_node(master)?;
    std::fs::rename(&data, cluster.work().join("lost-master"))?;
    cluster.atoll(&["restore", word(&file), "--data", word(&data)])?.ok()?;
    cluster.start_node(master)?;

    // Nobody refuses any more what they do not know to be erased; the bytes have to come again.
    wait::until("the bytes can be stored again", TIMEOUT, || {
        let folder = word(&takedown.source);
        let line = ["deploy", folder, "--site", SITE, "--reupload", "--json"];
        Ok((cluster.atoll(&line)?.code == Some(0)).then_some(()))
    })?;
    takedown.ensure_answers(200, &first).await?;
    // And can be taken down again. A person is shown what loses its bytes before, on the other stream
    // than the report.
    let line = ["invalidate", SITE, "--prefix", "/secret/", "--erase", "--everywhere"];
    let told = cluster.atoll(&line)?.ok()?;
    for text in [told.stderr.as_str(), &String::from_utf8_lossy(&told.stdout)] {
        ensure!(text.contains("copy.bin") && text.contains("site shop"), "{told}");
    }
    takedown.ensure_answers(410, &first).await?;
    takedown.wait_clean(&[Node::chunkserver(1), Node::edge(1)])?;
    takedown.cluster.finish()
}

/// By a tag that only the second deploy gives, while the leader and a chunkserver are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erasure_by_tag_outlives_the_leader_and_a_server() -> Result<()> {
    let seed = seed::or(63);
    let cluster = DevCluster::builder().masters(3).seed(seed).start()?;
    let mut rng = seed::rng(seed);
    let (secret, kept) = (random(&mut rng, 300_000), random(&mut rng, 30_000));
    let source = cluster.work().join("tagged");
    std::fs::create_dir_all(source.join("people"))?;
    for (path, bytes) in [("people/one.pdf", &secret), ("people/two.pdf", &kept)] {
        std::fs::write(source.join(path), bytes)?;
    }
    std::fs::write(source.join("404.html"), "nothing is here")?;
    std::fs::write(source.join("index.html"), "before there were tags")?;
    std::fs::write(source.join("people/gone.pdf"), "gone from the next deploy, and still served")?;
    cluster.deploy(&source, SITE)?;
    std::fs::remove_file(source.join("people/gone.pdf"))?;
    let headers = "/people/one.pdf\n  Cache-Tag: staff, Case-7\n/people/gone*\n  Cache-Tag: case-7\n/files/*\n  Cache-Tag: case-7\n";
    std::fs::write(source.join("_headers"), headers)?;
    std::fs::write(source.join("_redirects"), "/files/* /people/two.pdf 200\n")?;
    cluster.deploy(&source, SITE)?;

    let by_tag = ["invalidate", SITE, "--tag", "case-7", "--erase", "--json"];
    let planned = cluster.atoll(&[&by_tag[..], &["--dry-run"]].concat())?.ok()?.last()?;
    // What a rule rewrites to it, or says that it is not there, does not have the tag; the same file
    // of the deploy without tags has it.
    let tagged = serde_json::json!(["people/gone.pdf", "people/one.pdf"]);
    ensure!(planned["paths"] == tagged, "{planned}");
    ensure!(number(&planned, "places_count") == 3 && number(&planned, "chunks") == 2, "{planned}");

    let disks = [Node::chunkserver(1), Node::chunkserver(2), Node::chunkserver(3)];
    let marker = &secret[150_000..150_000 + MARKER];
    let folder = |node: Node| cluster.data().join("nodes").join(node.to_string());
    for node in disks {
        let held = format!("the secret on the disk of {node}");
        wait::holds(&held, TIMEOUT, || holds(&folder(node), marker))?;
    }
    // It is not over before this one has confirmed.
    cluster.freeze(disks[2])?;
    let running = cluster.start_atoll(&by_tag)?;
    let (_, edge) = cluster.edges().into_iter().next().context("an edge")?;
    let mut visitor = cluster.visit(Version::H1, edge, SITE).await?;
    let until = std::time::Instant::now() + TIMEOUT;
    while visitor.get("/people/one.pdf").await?.status != 410 {
        ensure!(std::time::Instant::now() < until, "the edge still has it");
    }
    let leader = Node::master(leader(&cluster)?);
    cluster.tell(format_args!("kill -9 {leader} and {}", disks[2]));
    cluster.kill9(leader)?;
    cluster.kill9(disks[2])?;
    cluster.start_node(leader)?;
    cluster.start_node(disks[2])?;
    // Who cannot ask any further who has confirmed says so; and asking again makes nobody do it twice.
    let told = running.finish(TIMEOUT * 2)?;
    ensure!(matches!(told.code, Some(0 | 6)), "{told}");
    let whole = cluster.atoll(&by_tag)?.ok()?.last()?;
    let servers = whole["chunkservers"].as_array().context("chunkservers")?;
    let confirmed = |server: &Value| server["confirmed"] == true && server["chunks"] == 0;
    ensure!(servers.len() == 3 && servers.iter().all(confirmed), "{whole}");
    for node in disks {
        ensure!(!holds(&folder(node), marker), "{node} has confirmed, and has it");
    }
    for (name, edge) in cluster.edges() {
        let mut visitor = cluster.visit(Version::H2, edge, SITE).await?;
        for path in ["/people/one.pdf", "/people/gone.pdf"] {
            ensure!(visitor.get(path).await?.status == 410, "{name} {path}");
        }
        for path in ["/people/two.pdf", "/files/x"] {
            let answer = visitor.get(path).await?;
            ensure!(answer.status == 200 && answer.body == kept, "{name} {path}: {answer:?}");
        }
        ensure!(visitor.get("/missing").await?.status == 404, "{name}");
    }
    cluster.wait_healthy()?;
    cluster.finish()
}
