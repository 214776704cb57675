//! Ten deploys race with `--if-current`: exactly one wins each round, and the order in the log is
//! the order in which edges serve them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::checks::{Racer, log_order};
use atoll_testbed::http::Version;
use atoll_testbed::{DevCluster, seed, wait};

use super::{log_of, text, word};

const SITE: &str = "race";
const RACERS: usize = 10;
const ROUNDS: usize = 3;
/// How long the next answer of a visitor may take.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let (mut watching, mut served) = (Vec::new(), Vec::new());
    for (edge, addr) in cluster.edges() {
        for version in Version::ALL {
            let mut visitor = cluster.visit(version, addr, SITE).await?;
            let who = format!("{edge} {version:?}");
            let (end, seen) = (Arc::clone(&end), Arc::new(Mutex::new(Vec::<String>::new())));
            served.push((who.clone(), Arc::clone(&seen)));
            watching.push(tokio::spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    let answer = visitor.get("/version.txt").await?;
                    ensure!(answer.status == 200, "{who}: {}", answer.status);
                    let deploy = answer.header("atoll-deploy").to_owned();
                    let mut deploys = seen.lock().expect("no visitor panics with it");
                    if deploys.last() != Some(&deploy) {
                        deploys.push(deploy);
                    }
                }
                Ok(())
            }));
        }
    }
    // Until every visitor has had an answer of this deploy: none is passed over.
    let all_see = |current: &str| {
        let last = |seen: &Mutex<Vec<String>>| seen.lock().expect("as above").last().cloned();
        wait::holds("every visitor sees the winner", PATIENCE, || {
            served.iter().all(|(_, seen)| last(seen).as_deref() == Some(current))
        })
    };
    tokio::task::block_in_place(|| all_see(&current))?;

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
            let outcome = racer.finish(Duration::from_secs(100))?;
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
        tokio::task::block_in_place(|| all_see(&current))?;
    }
    end.store(true, Ordering::Relaxed);
    for task in watching {
        task.await??;
    }
    let deploys = |seen: Arc<Mutex<Vec<String>>>| seen.lock().expect("as above").clone();
    let served: Vec<_> = served.into_iter().map(|(who, seen)| (who, deploys(seen))).collect();
    let logged = log_of(&cluster, SITE).await?;
    log_order(&rounds, &logged, &served).map_err(anyhow::Error::msg)?;
    let order: Vec<&str> = logged.iter().map(|entry| entry.deploy.as_str()).collect();
    ensure!(served.iter().all(|(_, deploys)| *deploys == order), "{served:?} are not {order:?}");
    cluster.finish()
}
