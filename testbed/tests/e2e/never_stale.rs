//! A publish you can prove, whatever the edges suffer: an edge that was frozen past its lease, and
//! one that was killed and comes back from its disk, answer nothing that was replaced meanwhile.
//! Without faults no request fails while publishes go on.

use anyhow::{Result, ensure};
use atoll_testbed::publishes::{Act, Hurt, Plan, Policy, Round, Strike, carry_out, run};
use atoll_testbed::{Node, seed};

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

#[test]
fn a_frozen_and_a_killed_edge_never_answer_with_what_was_replaced() -> Result<()> {
    let strike = |node, hurt, after_ms, hold_ms| Strike { node, hurt, after_ms, hold_ms };
    let strikes = vec![
        // Past the lease of ten seconds.
        strike(Node::edge(1), Hurt::Freeze, 0, 12_000),
        strike(Node::edge(2), Hurt::Kill, 300, 500),
    ];
    let acts = vec![(200, Act::Deploy), (0, Act::Promote(1)), (0, Act::Invalidate)];
    let report = carry_out(&plan(14, false), &[Round { strikes, acts }], None)?;
    ensure!(report.answers > 100, "{report:?}");
    Ok(())
}

#[test]
fn without_a_fault_no_request_fails_while_publishes_go_on() -> Result<()> {
    let report = run(&plan(15, true), None)?;
    ensure!(report.failed == 0 && report.unconfirmed == 0, "{report:?}");
    ensure!(report.answers > 100 && report.acknowledged > 3, "{report:?}");
    Ok(())
}
