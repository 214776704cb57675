//! A publish you can prove, whatever the edges and the machines suffer: an edge that was frozen past
//! its lease, one that was killed and comes back from its disk, and ones whose clocks jump and run
//! at other rates, answer nothing that was replaced meanwhile, under any policy. Without faults no
//! request fails while publishes go on. And where a clock is worse than leases assume, what then
//! goes wrong is found.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::checks::{Acknowledged, Publishes, Stale, never_stale_after_ack};
use atoll_testbed::cluster::host;
use atoll_testbed::proxy::{MasterLinks, Way};
use atoll_testbed::publishes::{
    Act, Hurt, PPM_MAX, Plan, Policy, Report, Round, Strike, carry_out, run,
};
use atoll_testbed::visitors::Crowd;
use atoll_testbed::{DevCluster, Fault, Node, seed, wait};
use serde_json::json;

use super::{log_of, number, text, word};

const PATIENCE: Duration = Duration::from_secs(60);

fn plan(seed: u64, calm: bool) -> Plan {
    Plan {
        seed: seed::or(seed),
        rounds: 1,
        masters: 1,
        edges: 3,
        shields: 1,
        policy: Policy::Strict,
        calm,
    }
}

/// The master fast, the edges slow, and everybody's wall clock wrong, on slow disks.
fn odd(edges: u64) -> Vec<(u64, Fault)> {
    let (master, edges) = (Node::master(1), (1..=edges).map(Node::edge));
    let mut odd = vec![
        (0, Fault::ClockRate { node: master, ppm: PPM_MAX }),
        (700, Fault::WallClock { node: master, ahead_secs: -7200 }),
        (0, Fault::SlowSyncs { node: master, ms: 50 }),
        (0, Fault::SlowSyncs { node: Node::chunkserver(1), ms: 300 }),
    ];
    for node in edges {
        odd.push((0, Fault::ClockRate { node, ppm: -PPM_MAX }));
        odd.push((500, Fault::WallClock { node, ahead_secs: 7200 }));
        odd.push((0, Fault::SlowSyncs { node, ms: 200 }));
    }
    odd
}

/// Every publish was confirmed: the first deploy, those of the round, and one at its end.
fn judged(report: &Report, round: &Round) -> Result<()> {
    ensure!(report.answers > 100 && report.slow_syncs > 0, "{report:?}");
    ensure!(report.unconfirmed == 0, "{report:?}");
    ensure!(report.acknowledged >= round.acts.len() + 2, "{report:?}");
    Ok(())
}

#[test]
fn a_frozen_and_a_killed_edge_never_answer_with_what_was_replaced() -> Result<()> {
    let strike = |node, hurt, after_ms, hold_ms| Strike { node, hurt, after_ms, hold_ms };
    let strikes = vec![
        // Past the lease of ten seconds.
        strike(Node::edge(1), Hurt::Suspend, 0, 12_000),
        strike(Node::edge(2), Hurt::Kill, 300, 500),
        // Awake, with the slowest clock that is allowed, while the master has the fastest.
        strike(Node::edge(3), Hurt::Cut, 0, 12_000),
    ];
    let acts = vec![(200, Act::Deploy), (0, Act::Promote(1)), (0, Act::Invalidate)];
    let rounds = [Round { strikes, odd: odd(3), acts }];
    judged(&carry_out(&plan(14, false), &rounds, None)?, &rounds[0])
}

/// One edge sleeps; one cannot be heard by the master and is past its lease by its own clock.
fn past_the_lease(seed: u64, policy: Policy) -> Result<()> {
    let strike = |node, hurt, after_ms, hold_ms| Strike { node, hurt, after_ms, hold_ms };
    let strikes = vec![
        strike(Node::edge(1), Hurt::Suspend, 0, 1500),
        strike(Node::edge(2), Hurt::CutThere, 100, 3000),
    ];
    let mut odd = odd(2);
    odd.push((300, Fault::SkipBootTime { node: Node::edge(2), secs: 12 }));
    let rounds = [Round { strikes, odd, acts: vec![(200, Act::Deploy), (0, Act::Promote(1))] }];
    let plan = Plan { edges: 2, shields: 0, policy, ..plan(seed, false) };
    judged(&carry_out(&plan, &rounds, None)?, &rounds[0])
}

#[test]
fn a_site_that_is_served_on_for_a_while_is_never_stale_either() -> Result<()> {
    past_the_lease(17, Policy::Bounded)
}

#[test]
fn a_site_that_is_always_served_is_never_stale_after_a_publish_was_confirmed() -> Result<()> {
    past_the_lease(18, Policy::Available)
}

#[test]
fn without_a_fault_no_request_fails_while_publishes_go_on() -> Result<()> {
    let report = run(&plan(15, true), None)?;
    ensure!(report.failed == 0 && report.unconfirmed == 0, "{report:?}");
    ensure!(report.answers > 100 && report.acknowledged > 3, "{report:?}");
    Ok(())
}

/// The checker and the faults can find something: otherwise the others here would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_far_slower_than_leases_assume_is_found_out() -> Result<()> {
    let seed = seed::or(16);
    let cluster = DevCluster::builder().edges(2).shields(0).shimmed().seed(seed).start()?;
    let slow = Node::edge(2);
    let links = MasterLinks::open(&cluster, seed).await?;
    links.lead(&cluster, slow)?;
    cluster.wait_healthy()?;
    let deploy = |content: &str| {
        let folder = cluster.work().join("site");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("version.txt"), content)?;
        let words = ["deploy", word(&folder), "--site", "news", "--create", "--wait", "all"];
        cluster.json(&words)
    };
    let one = deploy("one")?;
    let edges = cluster.edges();
    let trust = cluster.trust()?;
    let crowd = Crowd::start(&edges, &host("news"), "/version.txt", &trust, Instant::now());
    for (edge, _) in &edges {
        let saw = || crowd.saw(edge, text(&one, "deploy"), Duration::ZERO);
        wait::holds("the first deploy is seen", PATIENCE, saw)?;
    }

    // Ten seconds of its lease take it a thousand, and nobody knows.
    links.set_both(Way::cut());
    let rate = Fault::ClockRate { node: slow, ppm: -990_000 };
    rate.apply(&cluster)?;
    let begun = crowd.now();
    let two = deploy("two")?;
    let at = crowd.now();
    ensure!(two["edges_down"] == json!(["edge-2"]) && number(&two, "edges_acked") == 1, "{two}");
    let stale = || crowd.saw("edge-2", text(&one, "deploy"), at);
    wait::holds("it answers with what was replaced", PATIENCE, stale)?;
    let acknowledged = vec![Acknowledged { seq: number(&two, "seq"), begun, at }];
    let publishes = Publishes { log: log_of(&cluster, "news").await?, acknowledged };
    let requests = crowd.take();
    let Err(found) = never_stale_after_ack(&publishes, &requests) else {
        bail!("an edge was stale, and the checker did not see it")
    };
    for stale in &found {
        let Stale::Older { request, .. } = stale else { bail!("{stale}") };
        ensure!(request.visitor.starts_with("edge-2 "), "{stale}");
    }

    rate.undo(&cluster)?;
    links.set_both(Way::default());
    let since = crowd.now();
    let saw = || crowd.saw("edge-2", text(&two, "deploy"), since);
    wait::holds("it has caught up", PATIENCE, saw).context("with a clock that is right")?;
    crowd.finish().await;
    cluster.finish()
}
