//! A publish you can prove: when `deploy`, `rollback`, `promote` or `invalidate` has returned, no
//! edge answers a new request with the older version.

use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use atoll_testbed::checks::{Acknowledged, Publishes, Request, Seen, never_stale_after_ack};
use atoll_testbed::cluster::host;
use atoll_testbed::http::Version;
use atoll_testbed::visitors::Crowd;
use atoll_testbed::{DevCluster, Tree, seed};
use bytes::Bytes;
use serde_json::Value;

use super::{log_of, number, text, word};

const SITE: &str = "news";
const PATH: &str = "/version.txt";
/// Requests to every edge after each change.
const REQUESTS: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_publish_returned_no_edge_answers_with_the_older_version() -> Result<()> {
    let seed = seed::or(4);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let mut deploys = Vec::new();
    let bodies: Vec<Bytes> = (0..4).map(|n| Bytes::from(format!("version {n}"))).collect();
    for (number, body) in bodies.iter().enumerate() {
        let mut tree = Tree::ordinary(seed, 30);
        tree.put("version.txt", body.clone());
        tree.write(&cluster.work().join(number.to_string()))?;
    }
    let deploy = |number: usize| {
        let source = cluster.work().join(number.to_string());
        cluster.deploy(&source, SITE)
    };
    deploys.push(text(&deploy(0)?, "deploy").to_owned());

    let trust = cluster.trust()?;
    let began = Instant::now();
    let crowd = Crowd::start(&cluster.edges(), &host(SITE), PATH, &trust, began);
    let mut publishes = Publishes::default();
    let mut step = async |to: usize, change: &dyn Fn() -> Result<Value>| {
        let begun = began.elapsed();
        let done = change()?;
        let (seq, at) = (number(&done, "seq"), began.elapsed());
        publishes.acknowledged.push(Acknowledged { seq, begun, at });
        only(&cluster, &bodies[to]).await
    };
    for number in 1..4 {
        step(number, &|| deploy(number)).await?;
        let shown = cluster.json(&["site", "show", SITE])?;
        deploys.push(text(&shown["aliases"][0], "deploy").to_owned());
    }
    step(2, &|| cluster.json(&["rollback", SITE])).await?;
    step(0, &|| cluster.json(&["rollback", SITE, &deploys[0]])).await?;
    step(3, &|| cluster.json(&["promote", SITE, &deploys[3]])).await?;
    step(3, &|| cluster.json(&["invalidate", SITE, "--all"])).await?;
    step(3, &|| cluster.json(&["invalidate", SITE, "--path", PATH])).await?;
    // Without a wait a publish promises nothing yet; the next one that waits covers it.
    let source = cluster.work().join("1");
    cluster.json(&["deploy", word(&source), "--site", SITE, "--wait", "none"])?;
    step(2, &|| deploy(2)).await?;

    let requests = crowd.take();
    publishes.log = log_of(&cluster, SITE).await?;
    let answers = never_stale_after_ack(&publishes, &requests)
        .map_err(|stale| anyhow!("{} stale answers, such as {}", stale.len(), stale[0]))?;
    ensure!(answers > 100, "the visitors got only {answers} answers");
    // Nothing was broken, so every answer was right; on a slow machine one may come too late.
    let failed = |request: &&Request| match &request.seen {
        Seen::Deploy(_) => false,
        Seen::Refused(_) => true,
        Seen::Failed(reason) => !reason.ends_with("in time"),
    };
    let failed: Vec<&Request> = requests.iter().filter(failed).take(5).collect();
    ensure!(failed.is_empty(), "{failed:#?}");
    let right = deploys.into_iter().zip(bodies.iter().cloned()).collect();
    let torn = crowd.torn(&right);
    ensure!(torn.is_empty(), "{torn:#?}");
    crowd.finish().await;
    cluster.finish()
}

/// So many requests to every edge, all answered with this.
async fn only(cluster: &DevCluster, body: &Bytes) -> Result<()> {
    let mut asking = Vec::new();
    for (name, addr) in cluster.edges() {
        for version in Version::ALL {
            let mut visitor = cluster.visit(version, addr, SITE).await?;
            let (name, body) = (name.clone(), body.clone());
            asking.push(tokio::spawn(async move {
                for _ in 0..REQUESTS.div_ceil(3) {
                    let answer = visitor.get(PATH).await?;
                    ensure!(
                        answer.status == 200 && answer.body == body,
                        "{name} over {version:?}: {} {:?} instead of {body:?}",
                        answer.status,
                        answer.body
                    );
                }
                Ok(())
            }));
        }
    }
    for task in asking {
        task.await??;
    }
    Ok(())
}
