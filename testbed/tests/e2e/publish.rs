//! A publish you can prove: when `deploy`, `rollback`, `promote` or `invalidate` has returned, no
//! edge answers a new request with the older version.

use anyhow::{Result, ensure};
use atoll_testbed::cluster::host;
use atoll_testbed::hammer::Hammer;
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, Tree, seed};
use bytes::Bytes;

use super::{text, word};

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
    let hammer =
        Hammer::start(&cluster.edges(), &host(SITE), PATH, &trust, vec![bodies[0].clone()]);
    let step = async |from: usize, to: usize, change: &dyn Fn() -> Result<()>| {
        hammer.allow(vec![bodies[from].clone(), bodies[to].clone()]);
        change()?;
        hammer.allow(vec![bodies[to].clone()]);
        only(&cluster, &bodies[to]).await
    };
    for number in 1..4 {
        step(number - 1, number, &|| deploy(number).map(drop)).await?;
        let shown = cluster.json(&["site", "show", SITE])?;
        deploys.push(text(&shown["aliases"][0], "deploy").to_owned());
    }
    step(3, 2, &|| cluster.json(&["rollback", SITE]).map(drop)).await?;
    step(2, 0, &|| cluster.json(&["rollback", SITE, &deploys[0]]).map(drop)).await?;
    step(0, 3, &|| cluster.json(&["promote", SITE, &deploys[3]]).map(drop)).await?;
    step(3, 3, &|| cluster.json(&["invalidate", SITE, "--all"]).map(drop)).await?;
    step(3, 3, &|| cluster.json(&["invalidate", SITE, "--path", PATH]).map(drop)).await?;
    // Without a wait a publish promises nothing yet; the next one that waits covers it.
    let source = cluster.work().join("1");
    hammer.allow(bodies.clone());
    cluster.json(&["deploy", word(&source), "--site", SITE, "--wait", "none"])?;
    deploy(2)?;
    hammer.allow(vec![bodies[2].clone()]);
    only(&cluster, &bodies[2]).await?;

    let answers = hammer.finish().await?;
    ensure!(answers > 100, "the visitors got only {answers} answers");
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
