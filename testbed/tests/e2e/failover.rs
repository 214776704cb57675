//! Three masters, whatever they suffer: no acknowledged operation is lost, none is done twice, no
//! answer is older than what was acknowledged before it was asked for.

use anyhow::{Result, ensure};
use atoll_testbed::failover::{Hurt, Plan, Round, carry_out, run};
use atoll_testbed::seed;

fn plan(seed: u64, rounds: usize) -> Plan {
    Plan { seed: seed::or(seed), rounds, masters: 3, only: Vec::new() }
}

#[test]
fn clients_see_one_history_while_leaders_die_freeze_and_are_cut_off() -> Result<()> {
    let plan = plan(51, 0);
    let round = |hurt, hold_ms, seed| Round { hurt, after_ms: 300, hold_ms, which: seed, seed };
    let rounds = [
        round(Hurt::KillLeader, 1500, plan.seed),
        round(Hurt::CutWithClient, 2500, plan.seed + 1),
        round(Hurt::FreezeLeader, 5000, plan.seed + 2),
        round(Hurt::KillAll, 0, plan.seed + 3),
        round(Hurt::ReplaceFollower, 0, plan.seed + 4),
    ];
    let report = carry_out(&plan, &rounds, None)?;
    ensure!(report.rounds == rounds.len() && report.operations > 200, "{report:?}");
    Ok(())
}

#[test]
fn a_restart_of_all_masters_in_turn_fails_no_request() -> Result<()> {
    let plan = plan(52, 0);
    let round = |hurt| Round { hurt, after_ms: 200, hold_ms: 0, which: 0, seed: plan.seed };
    let report = carry_out(&plan, &[round(Hurt::RestartInTurn)], None)?;
    ensure!(report.unknown == 0 && report.operations > 100, "{report:?}");
    Ok(())
}

#[test]
fn a_seed_decides_what_happens() -> Result<()> {
    let report = run(&plan(53, 2), None)?;
    ensure!(report.rounds == 2, "{report:?}");
    Ok(())
}
