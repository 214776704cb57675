//! `_redirects`, `_headers`, clean URLs and single-page applications, from outside.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::{Answer, Connection, Version};
use atoll_testbed::{DevCluster, Node, seed, wait};
use http::Method;

use super::{number, text, word};

const SITE: &str = "ruled";
/// Chunks an edge has asked a shield or chunkserver for.
const FETCHED: &str = "atoll_edge_upstream_chunks_total";
const BROWSER: (&str, &str) = ("accept", "text/html,*/*;q=0.8");
const SCRIPT: (&str, &str) = ("accept", "*/*");

/// A folder with these files.
fn folder(cluster: &DevCluster, name: &str, files: &[(&str, &str)]) -> Result<PathBuf> {
    let folder = cluster.work().join(name);
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(path, content)?;
    }
    Ok(folder)
}

const FILES: &[(&str, &str)] = &[
    ("index.html", "home"),
    ("404.html", "lost"),
    ("file.html", "file"),
    ("folder/index.html", "folder"),
    ("app.js", "script"),
    (
        "_redirects",
        "/old /new 301\n/news/* /blog/:splat 302\n/in /file.html 200\n/x/* /:splat\n\
         /was /404.html 410\n/hello /hallo 302 Language=de\n/hello /hi 302\n",
    ),
    ("_headers", "/*\n  X-Site: ruled\n/app.js\n  Cache-Control: max-age=7\n"),
];

async fn get(visitor: &mut Connection, url: &str, accept: (&str, &str)) -> Result<Answer> {
    visitor.send(Method::GET, url, &[accept]).await
}

async fn visit(cluster: &DevCluster, addr: SocketAddr) -> Result<Connection> {
    cluster.visit(Version::H2, addr, SITE).await
}

const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_decide_at_every_edge_and_bad_ones_change_nothing() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(21)).start()?;
    let source = folder(&cluster, "site", FILES)?;
    let first = cluster.deploy(&source, SITE)?;
    for (name, addr) in cluster.edges() {
        for version in [Version::H1, Version::H2, Version::H3] {
            cluster.tell(format_args!("{name} over {version:?}"));
            let mut visitor = cluster.visit(version, addr, SITE).await?;
            redirects_and_headers(&mut visitor).await?;
        }
        nothing_is_asked_upstream(&cluster, addr).await?;
    }
    verified(&cluster)?;
    bad_rules(&cluster, text(&first, "deploy"))?;
    only_the_rules_change(&cluster, &source).await?;
    a_hundred_thousand(&cluster, &source).await?;
    tested_offline(&cluster, &source)?;
    // What the rules are stored as is counted as the deploys refer to it.
    let counted = cluster.json(&["fsck", "--repair"])?;
    ensure!(counted["clean"] == true, "{counted}");
    for way in ["raised", "created", "lowered"] {
        ensure!(number(&counted["recount"], way) == 0, "{counted}");
    }
    cluster.finish()
}

/// What rules answer can be proved, also later from what was saved.
fn verified(cluster: &DevCluster) -> Result<()> {
    let (_, edge) = cluster.edges().remove(0);
    let deploy = cluster.json(&["site", "show", SITE])?["aliases"][0]["deploy"].clone();
    let deploy = deploy.as_str().context("the deploy of production")?;
    for (path, answer, status) in [
        ("/old", "redirect", 301),
        ("/news/1?a=b", "redirect", 302),
        ("/in", "file", 200),
        ("/was", "absent", 410),
        ("/nothing", "absent", 404),
        ("/app.js", "file", 200),
        ("/hello", "redirect", 302),
    ] {
        let url = format!("https://{SITE}.localhost:{}{path}", edge.port());
        let proof = cluster.work().join("proof");
        let saved = ["verify", &url, "--save-proof", word(&proof)];
        for arguments in [
            saved.to_vec(),
            vec!["verify", &url, "--deploy", deploy],
            vec!["verify", &url, "--proof", word(&proof)],
        ] {
            let said = cluster.json(&arguments)?;
            ensure!(text(&said, "answer") == answer && said["verified"] == true, "{path}: {said}");
            ensure!(number(&said, "status") == status, "{path}: {said}");
        }
    }
    Ok(())
}

async fn redirects_and_headers(visitor: &mut Connection) -> Result<()> {
    for (url, status, location) in [
        ("/old?a=b", 301, "/new?a=b"),
        ("/news/2026/x%0d%0aA:b", 302, "/blog/2026/x%0D%0AA:b"),
        ("/x/evil.example", 301, "/evil.example"),
        ("/folder", 307, "/folder/"),
    ] {
        let answer = get(visitor, url, BROWSER).await?;
        ensure!(answer.status == status, "{url}: {answer:?}");
        ensure!(answer.header("location") == location, "{url}: {answer:?}");
        ensure!(answer.header("x-site").is_empty(), "{url}: {answer:?}");
    }
    for (url, accept, status, body) in [
        ("/in", BROWSER, 200, "file"),
        ("/file", BROWSER, 200, "file"),
        ("/nothing", BROWSER, 404, "lost"),
        ("/was", BROWSER, 410, "lost"),
    ] {
        let answer = get(visitor, url, accept).await?;
        ensure!(answer.status == status && answer.body == body, "{url}: {answer:?}");
        ensure!(answer.header("x-site") == "ruled", "{url}: {answer:?}");
    }
    let script = get(visitor, "/app.js", SCRIPT).await?;
    ensure!(script.header("cache-control") == "max-age=7", "{script:?}");
    let etag = script.header("etag").to_owned();
    let same = visitor.send(Method::GET, "/app.js", &[("if-none-match", &etag)]).await?;
    ensure!(same.status == 304 && same.header("cache-control") == "max-age=7", "{same:?}");
    for url in ["/gone.js", "/_redirects", "/_headers"] {
        let answer = get(visitor, url, SCRIPT).await?;
        ensure!(answer.status == 404, "{url}: {answer:?}");
    }
    for (language, location) in [("de-CH, en;q=0.5", "/hallo"), ("fr, de;q=0.5", "/hi")] {
        let answer = get(visitor, "/hello", ("accept-language", language)).await?;
        ensure!(answer.status == 302 && answer.header("location") == location, "{answer:?}");
        ensure!(answer.header("vary") == "Accept-Language", "{answer:?}");
    }
    let missing = get(visitor, "/gone.js", SCRIPT).await?;
    ensure!(missing.header("content-type").starts_with("text/plain"), "{missing:?}");
    Ok(())
}

/// Once rules and pages are at hand, redirects and 404s cost nothing upstream.
async fn nothing_is_asked_upstream(cluster: &DevCluster, addr: SocketAddr) -> Result<()> {
    let edges = cluster.edges();
    let at = edges.iter().position(|(_, own)| *own == addr).context("an edge")?;
    let node = Node::edge(at as u64 + 1);
    let mut visitor = visit(cluster, addr).await?;
    wait::until("the edge to have warmed the site", TIMEOUT, || {
        let warmed = cluster.metric(node, "atoll_edge_deploys_warmed_total")?;
        Ok((warmed >= 1.0).then_some(()))
    })?;
    let before = cluster.metric(node, FETCHED)?;
    for number in 0..200 {
        let answer = get(&mut visitor, &format!("/none/{number}.js"), SCRIPT).await?;
        ensure!(answer.status == 404, "{answer:?}");
        let answer = get(&mut visitor, &format!("/news/{number}"), BROWSER).await?;
        ensure!(answer.status == 302, "{answer:?}");
    }
    let fetched = cluster.metric(node, FETCHED)? - before;
    ensure!(fetched == 0.0, "{node} asked for {fetched} chunks");
    Ok(())
}

fn bad_rules(cluster: &DevCluster, before: &str) -> Result<()> {
    let bad = folder(cluster, "bad", FILES)?;
    fs::write(bad.join("_redirects"), "/a /b\n/api/* https://api.example/:splat 200\nnonsense\n")?;
    fs::write(bad.join("_headers"), "/*\n  Content-Length: 7\n")?;
    let site = ["deploy", word(&bad), "--site", SITE];
    for arguments in [site.to_vec(), [&site[..], &["--dry-run"]].concat()] {
        let outcome = cluster.atoll(&arguments)?.expect_code(1)?;
        for named in ["_redirects:2: ", "_redirects:3: ", "_headers:2: "] {
            ensure!(outcome.stderr.contains(named), "{named:?} is not named: {outcome}");
        }
    }
    let shown = cluster.json(&["site", "show", SITE])?.to_string();
    ensure!(shown.contains(before), "the site changed: {shown}");
    // The same in the other dialect: `!` is none of its words.
    fs::write(bad.join("_redirects"), "/a /b 301!\n")?;
    fs::remove_file(bad.join("_headers"))?;
    let pages = [&site[..], &["--dialect", "pages"]].concat();
    let outcome = cluster.atoll(&pages)?.expect_code(1)?;
    ensure!(outcome.stderr.contains("_redirects:1: "), "{outcome}");
    cluster.atoll(&[&site[..], &["--dry-run"]].concat())?.ok()?;
    // Nothing is wrong but that there are too many.
    fs::write(bad.join("_redirects"), "/* /b 200\n".repeat(5_000))?;
    for arguments in [&site[..], &["redirects", "test", word(&bad), "/a"]] {
        let outcome = cluster.atoll(arguments)?.expect_code(5)?;
        ensure!(outcome.stderr.contains("too many"), "{outcome}");
    }
    Ok(())
}

async fn only_the_rules_change(cluster: &DevCluster, source: &std::path::Path) -> Result<()> {
    fs::write(source.join("_redirects"), "/old /newer 308\n")?;
    let changed = cluster.deploy(source, SITE)?;
    ensure!(number(&changed, "chunks_uploaded") == 1, "the file itself: {changed}");
    for (_, addr) in cluster.edges() {
        let answer = get(&mut visit(cluster, addr).await?, "/old", BROWSER).await?;
        ensure!(answer.status == 308 && answer.header("location") == "/newer", "{answer:?}");
    }
    Ok(())
}

async fn a_hundred_thousand(cluster: &DevCluster, source: &std::path::Path) -> Result<()> {
    let mut lines = String::new();
    for number in 0..100_000 {
        writeln!(lines, "/articles/2019/{number}-a-title /blog/{number}-a-title 301")?;
    }
    fs::write(source.join("_redirects"), lines)?;
    cluster.deploy(source, SITE)?;
    for (_, addr) in cluster.edges() {
        let mut visitor = visit(cluster, addr).await?;
        for number in [0, 1, 77_777, 99_999] {
            let url = format!("/articles/2019/{number}-a-title");
            let answer = get(&mut visitor, &url, BROWSER).await?;
            let expected = format!("/blog/{number}-a-title");
            ensure!(answer.status == 301 && answer.header("location") == expected, "{answer:?}");
        }
        let answer = get(&mut visitor, "/articles/2019/x", BROWSER).await?;
        ensure!(answer.status == 404, "{answer:?}");
    }
    Ok(())
}

fn tested_offline(cluster: &DevCluster, source: &std::path::Path) -> Result<()> {
    fs::write(source.join("_redirects"), "# comment\n/old /new 301\n")?;
    let said = cluster.json(&["redirects", "test", word(source), "/old?a=b", "/app.js", "/no"])?;
    let results = said["results"].as_array().context("results")?;
    ensure!(results[0]["rule"]["line"] == 2 && results[0]["status"] == 301, "{said}");
    ensure!(results[0]["location"] == "/new?a=b", "{said}");
    ensure!(results[1]["file"] == "app.js" && results[1]["rule"].is_null(), "{said}");
    ensure!(results[1]["headers"].to_string().contains("max-age=7"), "{said}");
    ensure!(results[2]["status"] == 404 && results[2]["file"] == "404.html", "{said}");
    let told = cluster.atoll(&["redirects", "test", word(source), "/old"])?.ok()?.text();
    ensure!(told.contains("_redirects:2"), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_urls_in_four_modes_and_single_page_applications() -> Result<()> {
    let cluster = DevCluster::builder().seed(seed::or(22)).start()?;
    let source = folder(&cluster, "site", &FILES[..5])?;
    // What /file.html, /file, /file/, /folder and /folder/ are answered with.
    for (mode, expected) in [
        ("auto-trailing-slash", ["/file", "file", "/file", "/folder/", "folder"]),
        ("force-trailing-slash", ["/file/", "/file/", "file", "/folder/", "folder"]),
        ("drop-trailing-slash", ["/file", "file", "/file", "folder", "/folder"]),
        ("none", ["file", "lost", "lost", "lost", "lost"]),
        ("lenient", ["file", "file", "lost", "/folder/", "folder"]),
    ] {
        cluster.tell(mode);
        cluster.json(&[
            "deploy",
            word(&source),
            "--site",
            SITE,
            "--create",
            "--html-handling",
            mode,
        ])?;
        for (_, addr) in cluster.edges() {
            let mut visitor = visit(&cluster, addr).await?;
            let urls = ["/file.html", "/file", "/file/", "/folder", "/folder/"];
            for (url, expected) in urls.iter().zip(expected) {
                let answer = get(&mut visitor, url, BROWSER).await?;
                let is = match answer.status {
                    307 => answer.header("location").to_owned(),
                    _ => String::from_utf8_lossy(&answer.body).into_owned(),
                };
                ensure!(is == expected, "{mode}: {url}: {answer:?}");
            }
        }
    }
    spa(&cluster, &source).await?;
    cluster.finish()
}

async fn spa(cluster: &DevCluster, source: &std::path::Path) -> Result<()> {
    cluster.atoll(&["site", "set", SITE, "--spa=true"])?.ok()?;
    cluster.deploy(source, SITE)?;
    for (_, addr) in cluster.edges() {
        let mut visitor = visit(cluster, addr).await?;
        let route = get(&mut visitor, "/users/7", BROWSER).await?;
        ensure!(route.status == 200 && route.body == "home", "{route:?}");
        let script = get(&mut visitor, "/old-chunk.js", SCRIPT).await?;
        ensure!(script.status == 404, "{script:?}");
        ensure!(!script.header("content-type").contains("html"), "{script:?}");
        let headers = [SCRIPT, ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")];
        let fetched = visitor.send(Method::GET, "/api/users", &headers).await?;
        ensure!(fetched.status == 404, "{fetched:?}");
    }
    cluster.json(&["deploy", word(source), "--site", SITE, "--spa=false"])?;
    for (_, addr) in cluster.edges() {
        let answer = get(&mut visit(cluster, addr).await?, "/users/7", BROWSER).await?;
        ensure!(answer.status == 404 && answer.body == "lost", "{answer:?}");
    }
    Ok(())
}

/// Waits until every edge redirects `/old` there, or answers 404 when it is nowhere.
async fn moved(cluster: &DevCluster, site: &str, to: &str) -> Result<()> {
    for (name, addr) in cluster.edges() {
        let start = Instant::now();
        loop {
            let mut visitor = cluster.visit(Version::H1, addr, site).await?;
            let answer = get(&mut visitor, "/old", BROWSER).await?;
            if answer.header("location") == to && (answer.status == 404) == to.is_empty() {
                break;
            }
            ensure!(start.elapsed() < TIMEOUT, "{name}: /old should lead to {to:?}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_site_follows_the_rules_in_its_directory() -> Result<()> {
    const LIVE: &str = "/sites/notes";
    let cluster = DevCluster::builder().seed(seed::or(23)).start()?;
    let put = |name: &str, content: &str| -> Result<()> {
        let file = cluster.work().join("one");
        fs::write(&file, content)?;
        cluster.atoll(&["upload", word(&file), &format!("{LIVE}/{name}")])?.ok().map(drop)
    };
    cluster.atoll(&["site", "create", "notes", "--live", LIVE])?.ok()?;
    cluster.atoll(&["mkdir", "-p", LIVE])?.ok()?;
    put("index.html", "home")?;
    put("_redirects", "/old /new 301\n")?;
    moved(&cluster, "notes", "/new").await?;
    put("_redirects", "/old /newer 302\n")?;
    moved(&cluster, "notes", "/newer").await?;

    put("_redirects", "/old /newest\nnonsense\n")?;
    let refused = cluster.atoll(&["publish", "notes"])?.expect_code(1)?;
    ensure!(refused.stderr.contains("_redirects:2: "), "{refused}");
    let status = cluster.atoll(&["status"])?;
    ensure!(status.code != Some(0) && status.text().contains("_redirects:2"), "{status}");
    moved(&cluster, "notes", "/newer").await?;
    cluster.atoll(&["rm", &format!("{LIVE}/_redirects")])?.ok()?;
    moved(&cluster, "notes", "").await?;

    // Settings count at once.
    cluster.atoll(&["site", "set", "notes", "--spa"])?.ok()?;
    cluster.json(&["publish", "notes"])?;
    for (_, addr) in cluster.edges() {
        let mut visitor = cluster.visit(Version::H2, addr, "notes").await?;
        let route = get(&mut visitor, "/users/7", BROWSER).await?;
        ensure!(route.status == 200 && route.body == "home", "{route:?}");
    }
    cluster.wait_healthy()?;
    let counted = cluster.json(&["fsck", "--repair"])?;
    ensure!(counted["clean"] == true && number(&counted["recount"], "lowered") == 0, "{counted}");
    cluster.finish()
}
