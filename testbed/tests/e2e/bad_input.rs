//! Bad input from people: each a clear error that names the thing, and nothing is changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::cluster::host;
use atoll_testbed::http::{Version, raw};
use atoll_testbed::{DevCluster, Outcome, Tree, process, seed};

use super::{ensure_served_everywhere, text, word};

const SITE: &str = "solid";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_trees_arguments_and_requests_are_refused_and_change_nothing() -> Result<()> {
    let seed = seed::or(10);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let good = Tree::generate(seed, 60);
    let source = cluster.work().join("good");
    good.write(&source)?;
    let done = cluster.deploy(&source, SITE)?;
    let deploy = text(&done, "deploy").to_owned();

    trees_that_cannot_be_deployed(&cluster)?;
    unreadable_file(&cluster)?;
    a_file_that_changes_or_vanishes(&cluster)?;
    arguments(&cluster)?;
    tokens_and_clusters(&cluster).await?;

    let shown = cluster.json(&["site", "show", SITE])?.to_string();
    ensure!(shown.contains(&deploy), "the site changed: {shown}");
    ensure_served_everywhere(&cluster, SITE, &good, &[Version::H2]).await?;
    requests(&cluster).await?;
    what_is_odd_but_fine(&cluster).await?;
    cluster.ensure_all_run()?;
    cluster.finish()
}

fn deploy(cluster: &DevCluster, folder: &Path) -> Result<Outcome> {
    cluster.atoll(&["deploy", word(folder), "--site", SITE])
}

/// The error names this, and exits with 1.
fn refused(outcome: Outcome, named: &str) -> Result<()> {
    let outcome = outcome.expect_code(1)?;
    ensure!(outcome.stderr.contains(named), "{named:?} is not named: {outcome}");
    ensure!(!outcome.stderr.contains("panicked"), "{outcome}");
    Ok(())
}

fn folder(cluster: &DevCluster, name: &str) -> Result<std::path::PathBuf> {
    let folder = cluster.work().join(name);
    Tree::ordinary(1, 5).write(&folder)?;
    Ok(folder)
}

fn trees_that_cannot_be_deployed(cluster: &DevCluster) -> Result<()> {
    let dangling = folder(cluster, "dangling")?;
    symlink("nowhere", dangling.join("dangling-link"))?;
    refused(deploy(cluster, &dangling)?, "dangling-link")?;

    let leaving = folder(cluster, "leaving")?;
    symlink("/etc/passwd", leaving.join("leaving-link"))?;
    refused(deploy(cluster, &leaving)?, "leaving-link")?;

    let pipe = folder(cluster, "pipe")?;
    nix::unistd::mkfifo(&pipe.join("a-pipe"), nix::sys::stat::Mode::S_IRWXU)?;
    refused(deploy(cluster, &pipe)?, "a-pipe")?;

    let socket = folder(cluster, "socket")?;
    let listener = UnixListener::bind(socket.join("a-socket"))?;
    refused(deploy(cluster, &socket)?, "a-socket")?;
    drop(listener);

    let own_circle = folder(cluster, "own-circle")?;
    symlink("to-itself", own_circle.join("to-itself"))?;
    refused(deploy(cluster, &own_circle)?, "to-itself")?;

    refused(deploy(cluster, &cluster.work().join("absent"))?, "absent")?;
    refused(deploy(cluster, &pipe.join("index.html"))?, "index.html")
}

/// Root reads everything, unless it gives that right away.
fn unreadable_file(cluster: &DevCluster) -> Result<()> {
    let unreadable = folder(cluster, "unreadable")?;
    let secret = unreadable.join("secret.txt");
    fs::write(&secret, "secret")?;
    fs::set_permissions(&secret, Permissions::from_mode(0o000))?;
    let arguments = ["deploy", word(&unreadable), "--site", SITE];
    if !nix::unistd::geteuid().is_root() {
        return refused(cluster.atoll(&arguments)?, "secret.txt");
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]);
    command.arg(cluster.binary()).args(arguments);
    for (name, value) in cluster.command().get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    refused(process::run(command, Duration::from_secs(60))?, "secret.txt")
}

/// Such a deploy either fails by name or publishes something that was there.
fn a_file_that_changes_or_vanishes(cluster: &DevCluster) -> Result<()> {
    let restless = folder(cluster, "restless")?;
    let victim = restless.join("restless.bin");
    let vanishing = restless.join("vanishing.bin");
    let stop = Arc::new(AtomicBool::new(false));
    let restless_thread = {
        let (stop, victim, vanishing) = (Arc::clone(&stop), victim.clone(), vanishing.clone());
        std::thread::spawn(move || -> std::io::Result<()> {
            let mut content = vec![0u8; 6 << 20];
            let mut round = 0usize;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                content[round % (6 << 20)] ^= 0x55;
                fs::write(&victim, &content[..(5 << 20) + round % 4096])?;
                fs::write(&vanishing, &content[..1 << 20])?;
                fs::remove_file(&vanishing)?;
            }
            Ok(())
        })
    };
    let mut failed = 0;
    let outcomes: Result<Vec<Outcome>> = (0..5)
        .map(|_| {
            let folder = word(&restless);
            cluster.atoll(&["deploy", folder, "--site", "restless", "--create"])
        })
        .collect();
    stop.store(true, Ordering::Relaxed);
    restless_thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    for outcome in outcomes? {
        match outcome.code {
            Some(0) => {}
            Some(1) => {
                failed += 1;
                ensure!(
                    outcome.stderr.contains("restless.bin")
                        || outcome.stderr.contains("vanishing.bin"),
                    "{outcome}"
                );
            }
            _ => anyhow::bail!("{outcome}"),
        }
        ensure!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
    // How many are caught in the middle is the scheduler's choice.
    cluster.tell(format_args!("{failed} of 5 deploys of a restless tree were refused"));
    // At rest, it can be deployed.
    cluster.deploy(&restless, "restless")?;
    Ok(())
}

fn arguments(cluster: &DevCluster) -> Result<()> {
    let usage: &[&[&str]] = &[
        &["deploy", ".", "--site", SITE, "--no-such-flag"],
        &["no-such-verb"],
        &["deploy"],
        &["site", "create", "Upper"],
        &["site", "create", "two--dashes"],
        &["site", "create", "-start"],
        &["site", "create", "dot.ted"],
        &["site", "create", ""],
        &["deploy", ".", "--site", "../up"],
        &["ls", "relative"],
        &["cat", "/a/../b"],
        &["dev", "start", "wizard", "1"],
        &["rollback", SITE, "not-hex"],
    ];
    for arguments in usage {
        let outcome = cluster.atoll(arguments)?.expect_code(2)?;
        ensure!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{outcome}");
    }
    let nothing = "0123456789abcdef".repeat(4);
    let failing: &[(&[&str], &str)] = &[
        (&["site", "show", "no-such-site"], "no-such-site"),
        (&["rollback", "no-such-site"], "no-such-site"),
        (&["rollback", SITE, &nothing], "0123456789ab"),
        (&["promote", SITE, &nothing], "0123456789ab"),
        (&["cat", "/no/such/file"], "/no/such/file"),
        (&["mv", "/no-such", "/elsewhere"], "/no-such"),
        (&["--config", "/no/such/config.toml", "status"], "/no/such/config.toml"),
    ];
    for (arguments, named) in failing {
        refused(cluster.atoll(arguments)?, named)?;
    }
    let source = cluster.work().join("good");
    refused(cluster.atoll(&["deploy", word(&source), "--site", "new-site"])?, "new-site")
}

/// A changed copy of the client's configuration.
fn configured(
    cluster: &DevCluster,
    name: &str,
    change: impl FnOnce(&mut atoll_client::ClientConfig),
) -> Result<String> {
    let mut config = atoll_client::ClientConfig::load(&cluster.ready().config)?;
    change(&mut config);
    let path = cluster.work().join(name);
    config.save(&path)?;
    Ok(word(&path).to_owned())
}

async fn tokens_and_clusters(cluster: &DevCluster) -> Result<()> {
    let source = cluster.work().join("good");
    let wrong = configured(cluster, "wrong.toml", |config| config.token = Some("wrong".into()))?;
    let none = configured(cluster, "none.toml", |config| config.token = None)?;
    for config in [&wrong, &none] {
        let deploy = ["deploy", word(&source), "--site", SITE, "--config", config];
        let outcome = cluster.atoll(&deploy)?.expect_code(3)?;
        ensure!(outcome.stderr.contains("token"), "says what is missing: {outcome}");
        cluster.atoll(&["rm", "-r", "/x", "--config", config])?.expect_code(3)?;
    }
    // A port where nobody is.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let gone = configured(cluster, "gone.toml", |config| config.masters = vec![nobody])?;
    let outcome = cluster.atoll(&["status", "--config", &gone])?.expect_code(7)?;
    ensure!(outcome.stderr.contains(&nobody.to_string()), "names it: {outcome}");

    // A certificate of another cluster's authority.
    let foreign = cluster.work().join("foreign");
    let ca = atoll_net::ClusterCa::create(atoll_proto::ClusterId([7; 16]))?;
    ca.issue(atoll_net::Role::Client, "stranger")?.save(&foreign)?;
    let stranger = configured(cluster, "stranger.toml", |config| config.identity = foreign)?;
    let outcome = cluster.atoll(&["status", "--config", &stranger])?;
    ensure!([Some(3), Some(7)].contains(&outcome.code), "{outcome}");

    let torn = cluster.work().join("torn.toml");
    fs::write(&torn, "masters = [\"127.0.0.1:1\"\nunknown = 1\n")?;
    refused(cluster.atoll(&["status", "--config", word(&torn)])?, "torn.toml")
}

/// Requests that no client library sends.
async fn requests(cluster: &DevCluster) -> Result<()> {
    let trust = cluster.trust()?;
    let (_, edge) = cluster.edges().remove(0);
    let name = host(SITE);
    let refused_paths = [
        "/../etc/passwd",
        "/..",
        "/part-1/../../x",
        "/%2e%2e/etc/passwd",
        "/%2E%2e/",
        "/a%00b",
        "/%",
        "/%4",
        "/%zz",
        "/x%2f..%2fy",
        "/..%2f..%2fetc/passwd",
    ];
    for path in refused_paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        let answer = raw(edge, &name, &trust, request.as_bytes()).await?;
        let head = String::from_utf8_lossy(&answer);
        ensure!(head.starts_with("HTTP/1.1 400"), "{path}: {:.200}", head);
        for version in [Version::H2, Version::H3] {
            let mut visitor = cluster.visit(version, edge, SITE).await?;
            let answer = visitor.get(path).await?;
            ensure!(answer.status == 400, "{path} over {version:?}: {answer:?}");
        }
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: {name}\r\n\r\n", "a".repeat(1 << 20));
    let broken: [&[u8]; 8] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n",
        long.as_bytes(),
    ];
    for request in broken {
        let answer = raw(edge, &name, &trust, request).await.unwrap_or_default();
        let head = String::from_utf8_lossy(&answer);
        let served = head.starts_with("HTTP/1.1 2");
        ensure!(!served, "{:.60}: {head:.200}", request.escape_ascii());
    }
    let mut visitor = cluster.visit(Version::H1, edge, SITE).await?;
    ensure!(visitor.get("/version.txt").await?.status == 200, "the edge has had enough");
    Ok(())
}

/// What looks like trouble and is none.
async fn what_is_odd_but_fine(cluster: &DevCluster) -> Result<()> {
    let odd = cluster.work().join("odd");
    let mut tree = Tree::ordinary(2, 3);
    tree.write(&odd)?;
    fs::create_dir(odd.join("empty-directory"))?;
    symlink("index.html", odd.join("inner-link.html"))?;
    symlink("..", odd.join("part-0/circle"))?;
    let content = tree.content("index.html").context("an index")?.clone();
    tree.put("inner-link.html", content);
    cluster.deploy(&odd, "odd")?;
    ensure_served_everywhere(cluster, "odd", &tree, &[Version::H3]).await?;

    let empty = cluster.work().join("empty");
    fs::create_dir(&empty)?;
    let outcome = cluster.atoll(&["deploy", word(&empty), "--site", "empty", "--create"])?;
    ensure!([Some(0), Some(1)].contains(&outcome.code), "{outcome}");
    ensure!(!outcome.stderr.contains("panicked"), "{outcome}");
    Ok(())
}
