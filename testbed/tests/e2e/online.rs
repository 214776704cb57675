//! A site online: every file, byte for byte, from every edge, over every HTTP, and the rules of
//! HTTP around it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::cluster::host;
use atoll_testbed::http::{Answer, Connection, Version};
use atoll_testbed::tree::url_path;
use atoll_testbed::{DevCluster, Tree, process, seed};
use http::Method;

use super::{ensure_served, number, text, word};

const SITE: &str = "blog";
const BIG: &str = "/sizes/three-and-a-half.bin";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployed_tree_is_served_byte_for_byte_by_every_edge() -> Result<()> {
    let seed = seed::or(1);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::generate(seed, 320);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    let done = cluster.deploy(&source, SITE)?;
    ensure!(number(&done, "files") == tree.files.len() as u64, "{done}");
    ensure!(number(&done, "bytes") == tree.bytes(), "{done}");
    ensure!(number(&done, "edges") == number(&done, "edges_acked"), "{done}");
    let deploy = text(&done, "deploy").to_owned();

    for (name, addr) in cluster.edges() {
        for version in Version::ALL {
            let what = format!("{name} over {version:?}");
            let mut visitor = cluster.visit(version, addr, SITE).await?;
            ensure_served(&mut visitor, &tree, &what).await?;
            let facts = Facts { tree: &tree, deploy: &deploy, edge: &name, version };
            facts.check(&mut visitor).await.map_err(|error| error.context(what))?;
        }
        hosts(&cluster, addr).await?;
    }
    plain_http_redirects(&cluster).await?;
    curl_gets_the_same(&cluster, &tree)?;
    cluster.ensure_all_run()?;
    cluster.finish()
}

/// What is known about the site, and through whom it is asked for.
struct Facts<'a> {
    tree: &'a Tree,
    deploy: &'a str,
    edge: &'a str,
    version: Version,
}

impl Facts<'_> {
    async fn check(&self, visitor: &mut Connection) -> Result<()> {
        self.headers(visitor).await?;
        self.conditions(visitor).await?;
        self.ranges(visitor).await?;
        self.methods(visitor).await?;
        self.pages(visitor).await
    }

    fn content(&self, path: &str) -> &[u8] {
        self.tree.content(path.trim_start_matches('/')).unwrap()
    }

    async fn headers(&self, visitor: &mut Connection) -> Result<()> {
        visitor.get("/version.txt").await?;
        let answer = visitor.get("/version.txt").await?;
        let etag = answer.header("etag");
        ensure!(etag.starts_with('"') && etag.len() > 10, "no strong ETag: {answer:?}");
        ensure!(answer.header("atoll-deploy") == self.deploy, "{answer:?}");
        ensure!(answer.header("accept-ranges") == "bytes", "{answer:?}");
        ensure!(answer.header("last-modified").ends_with("GMT"), "{answer:?}");
        ensure!(answer.header("content-type").starts_with("text/plain"), "{answer:?}");
        ensure!(answer.header("content-length") == "1", "{answer:?}");
        let cache = answer.header("cache-status");
        ensure!(cache.contains(self.edge) && cache.contains("hit"), "{answer:?}");
        if self.version != Version::H3 {
            ensure!(answer.header("alt-svc").contains("h3=\":"), "{answer:?}");
        }
        let other = visitor.get("/index.html").await?;
        ensure!(other.header("etag") != etag, "one ETag for two contents");
        ensure!(other.header("content-type").starts_with("text/html"), "{other:?}");
        let with_query = visitor.get("/version.txt?v=1&x=%zz").await?;
        ensure!(with_query.status == 200, "a query changes nothing: {with_query:?}");
        Ok(())
    }

    async fn conditions(&self, visitor: &mut Connection) -> Result<()> {
        let path = "/part-1/index.html";
        let full = visitor.get(path).await?;
        let (etag, modified) = (full.header("etag"), full.header("last-modified"));
        let weak = format!("W/{etag}");
        let list = format!("\"x\", {etag}");
        let cases: [(&str, &str, u16); 9] = [
            ("if-none-match", etag, 304),
            ("if-none-match", &weak, 304),
            ("if-none-match", &list, 304),
            ("if-none-match", "*", 304),
            ("if-none-match", "\"other\"", 200),
            ("if-modified-since", modified, 304),
            ("if-match", etag, 200),
            ("if-match", "\"other\"", 412),
            ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT", 412),
        ];
        for (name, value, status) in cases {
            let answer = visitor.send(Method::GET, path, &[(name, value)]).await?;
            ensure!(answer.status == status, "{name}: {value}: {answer:?}");
            if status == 304 {
                ensure!(answer.body.is_empty() && answer.header("etag") == etag, "{answer:?}");
            }
        }
        Ok(())
    }

    async fn ranges(&self, visitor: &mut Connection) -> Result<()> {
        let all = self.content(BIG);
        let size = all.len();
        let mib = 1 << 20;
        let cases = [
            ("bytes=0-9".to_owned(), 0..10),
            ("bytes=-5".to_owned(), size - 5..size),
            (format!("bytes={}-", size - 1), size - 1..size),
            (format!("bytes={}-{}", mib - 3, mib + 3), mib - 3..mib + 4),
            (format!("bytes={}-{}", mib / 2, 3 * mib), mib / 2..3 * mib + 1),
            (format!("bytes={}-{}", size - 2, size + 100), size - 2..size),
        ];
        for (range, expected) in cases {
            let answer = visitor.send(Method::GET, BIG, &[("range", &range)]).await?;
            ensure!(answer.status == 206, "{range}: {} {:?}", answer.status, answer.headers);
            let said = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
            ensure!(answer.header("content-range") == said, "{range}: {:?}", answer.headers);
            ensure!(answer.body == all[expected], "{range}: wrong bytes");
        }
        let beyond = format!("bytes={size}-");
        let answer = visitor.send(Method::GET, BIG, &[("range", &beyond)]).await?;
        ensure!(answer.status == 416, "{answer:?}");
        ensure!(answer.header("content-range") == format!("bytes */{size}"), "{answer:?}");
        let etag = answer_etag(visitor, BIG).await?;
        for (if_range, status) in [(etag.as_str(), 206), ("\"other\"", 200)] {
            let headers = [("range", "bytes=0-0"), ("if-range", if_range)];
            let answer = visitor.send(Method::GET, BIG, &headers).await?;
            ensure!(answer.status == status, "if-range {if_range}: {}", answer.status);
        }
        let answer = visitor.send(Method::GET, BIG, &[("range", "bytes=nonsense")]).await?;
        ensure!(answer.status == 200 && answer.body.len() == size, "{:?}", answer.headers);
        Ok(())
    }

    async fn methods(&self, visitor: &mut Connection) -> Result<()> {
        let full = visitor.get("/index.html").await?;
        let head = visitor.send(Method::HEAD, "/index.html", &[]).await?;
        ensure!(head.status == 200 && head.body.is_empty(), "{head:?}");
        for name in ["etag", "content-length", "content-type", "last-modified"] {
            ensure!(head.header(name) == full.header(name), "{name}: {head:?} {full:?}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let answer = visitor.send(method.clone(), "/index.html", &[]).await?;
            ensure!(answer.status == 405, "{method}: {answer:?}");
            ensure!(answer.header("allow").contains("GET"), "{method}: {answer:?}");
        }
        let options = visitor.send(Method::OPTIONS, "/index.html", &[]).await?;
        ensure!([200, 204].contains(&options.status), "{options:?}");
        ensure!(options.header("allow").contains("HEAD"), "{options:?}");
        Ok(())
    }

    async fn pages(&self, visitor: &mut Connection) -> Result<()> {
        for (url, file) in [("/", "index.html"), ("/part-2/", "part-2/index.html")] {
            let answer = visitor.get(url).await?;
            ensure!(answer.status == 200 && answer.body == self.content(file), "{url}: {answer:?}");
        }
        let answer = visitor.get("/part-2").await?;
        ensure!([301, 302, 307, 308].contains(&answer.status), "{answer:?}");
        ensure!(answer.header("location").ends_with("/part-2/"), "{answer:?}");
        for url in ["/nothing", "/part-2/nothing.html", "/a/b", "/index.html/x", "/%FF%FE"] {
            let answer = visitor.get(url).await?;
            ensure!(answer.status == 404, "{url}: {answer:?}");
            ensure!(answer.body == self.content("404.html"), "{url}: {answer:?}");
        }
        Ok(())
    }
}

async fn answer_etag(visitor: &mut Connection, path: &str) -> Result<String> {
    Ok(visitor.send(Method::HEAD, path, &[]).await?.header("etag").to_owned())
}

/// The site's names in the zone are the same site; a name without a site is not.
async fn hosts(cluster: &DevCluster, addr: std::net::SocketAddr) -> Result<()> {
    let zone = cluster.ready().dns[0].zone.clone();
    let trust = cluster.trust()?;
    let name = format!("{SITE}.{zone}");
    let mut visitor = Connection::open(Version::H2, addr, &name, &trust).await?;
    let answer = visitor.get("/version.txt").await?;
    ensure!(answer.status == 200 && answer.body == "0", "{name}: {answer:?}");
    let mut visitor = Connection::open(Version::H1, addr, &host("no-such-site"), &trust).await?;
    let answer = visitor.get("/version.txt").await?;
    ensure!([404, 421].contains(&answer.status), "an unknown host: {answer:?}");
    Ok(())
}

async fn plain_http_redirects(cluster: &DevCluster) -> Result<()> {
    for edge in cluster.ready().visitor_edges() {
        let mut visitor = Connection::plain(edge.http, &host(SITE)).await?;
        let answer: Answer = visitor.get("/a%20b?q=1").await?;
        ensure!([301, 307, 308].contains(&answer.status), "{answer:?}");
        let location = format!("https://{}:{}/a%20b?q=1", host(SITE), edge.https.port());
        ensure!(answer.header("location") == location, "{answer:?}");
    }
    Ok(())
}

/// A client that is not ours.
fn curl_gets_the_same(cluster: &DevCluster, tree: &Tree) -> Result<()> {
    let ready = cluster.ready();
    let edge = ready.visitor_edges().next().unwrap();
    for flag in ["--http1.1", "--http2"] {
        for (path, content) in tree.files.iter().step_by(16) {
            let name = host(SITE);
            let port = edge.https.port();
            let mut command = Command::new("curl");
            command.args(["-sS", "--fail", "--path-as-is", flag, "--cacert", word(&ready.ca)]);
            command.args(["--resolve", &format!("{name}:{port}:127.0.0.1")]);
            command.arg(format!("https://{name}:{port}{}", url_path(path)));
            let outcome = process::run(command, Duration::from_secs(60))?.ok()?;
            ensure!(outcome.stdout == *content, "curl {flag} {}", path.escape_ascii());
        }
    }
    Ok(())
}
