//! Ten deploys race with `--if-current`: exactly one wins each round, and the order in the log is
//! the order in which edges serve them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_proto::Seq;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::PublishEvent;
use atoll_testbed::checks::{Entry, Racer, log_order};
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, seed};

use super::{text, word};

const SITE: &str = "race";
const RACERS: usize = 10;
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_one_of_ten_racing_deploys_wins_and_edges_serve_the_winners_in_order() -> Result<()>
{
    let cluster = DevCluster::builder().seed(seed::or(16)).start()?;
    let source = |name: &str| -> Result<std::path::PathBuf> {
        let folder = cluster.work().join(name);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("version.txt"), name)?;
        Ok(folder)
    };
    let mut current = text(&cluster.deploy(&source("first")?, SITE)?, "deploy").to_owned();
    let mut rounds = vec![vec![Racer { deploy: current.clone(), won: true }]];

    let end = Arc::new(AtomicBool::new(false));
    let mut watching = Vec::new();
    for (edge, addr) in cluster.edges() {
        for version in Version::ALL {
            let mut visitor = cluster.visit(version, addr, SITE).await?;
            let (edge, end) = (edge.clone(), Arc::clone(&end));
            watching.push(tokio::spawn(async move {
                let mut deploys: Vec<String> = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    let answer = visitor.get("/version.txt").await?;
                    ensure!(answer.status == 200, "{edge}: {}", answer.status);
                    let deploy = answer.header("atoll-deploy").to_owned();
                    if deploys.last() != Some(&deploy) {
                        deploys.push(deploy);
                    }
                }
                Ok((format!("{edge} {version:?}"), deploys))
            }));
        }
    }

    for round in 0..ROUNDS {
        let mut running = Vec::new();
        for racer in 0..RACERS {
            let folder = source(&format!("round-{round}-{racer}"))?;
            let words =
                ["deploy", word(&folder), "--site", SITE, "--if-current", &current, "--json"];
            running.push(cluster.start_atoll(&words)?);
        }
        let mut racers = Vec::new();
        for (number, racer) in running.into_iter().enumerate() {
            let outcome = racer.finish(std::time::Duration::from_secs(100))?;
            let deploy = match outcome.code {
                Some(0) => text(&outcome.last()?, "deploy").to_owned(),
                Some(4) => format!("loser {number}"),
                _ => bail!("neither won nor lost: {outcome}"),
            };
            racers.push(Racer { deploy, won: outcome.code == Some(0) });
        }
        current = racers.iter().find(|racer| racer.won).context("nobody won")?.deploy.clone();
        cluster.tell(format_args!("round {round}: {current} won"));
        rounds.push(racers);
    }
    end.store(true, Ordering::Relaxed);
    let mut served = Vec::new();
    for task in watching {
        served.push(task.await??);
    }
    log_order(&rounds, &log(&cluster).await?, &served).map_err(anyhow::Error::msg)?;
    ensure!(served.iter().all(|(_, deploys)| deploys.last() == Some(&current)), "{served:?}");
    cluster.finish()
}

/// The publish log of the site, as the masters tell it.
async fn log(cluster: &DevCluster) -> Result<Vec<Entry>> {
    let client = cluster.client().await?;
    let request = MasterRequest::Watch { after: Seq(0), edge: None, wait_ms: 0 };
    let deadline = std::time::Duration::from_secs(10);
    let MasterResponse::Log { entries, .. } = client.master(&request, deadline).await? else {
        bail!("the log is not kept from its start");
    };
    let entry = |entry: atoll_proto::publish::PublishEntry| match entry.event {
        PublishEvent::AliasSet(alias) if alias.site.as_str() == SITE => {
            Some(Entry { seq: entry.seq.0, deploy: alias.deploy.to_string() })
        }
        _ => None,
    };
    Ok(entries.into_iter().filter_map(entry).collect())
}
