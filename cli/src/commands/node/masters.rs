//! `atoll node add|replace|rm` of masters: who keeps the metadata, and who decides.

use std::net::SocketAddr;
use std::time::Duration;

use atoll_client::Cluster;
use atoll_proto::masters::{MasterView, MastersOp};
use serde::Serialize;
use tokio::time::Instant;

use crate::connect::Context;
use crate::progress::Countdown;
use crate::report::Failure;

/// How often the masters are asked how far a new one is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A new master that is so many entries behind, or fewer, is given its vote.
const BEHIND_MAX: u64 = 500;
/// A new master that gets nothing for so long is waited for in vain.
const STUCK_FOR: Duration = Duration::from_secs(60);

/// The final object of `--json`.
#[derive(Serialize)]
struct DoneObject<'a> {
    event: &'static str,
    id: u64,
    name: String,
    /// `voter`, `learner` or `removed`.
    duty: &'static str,
    /// All that there are then.
    masters: &'a [MasterView],
}

/// The id in a name such as `master-4`.
pub(crate) fn id_of(typed: &str) -> Option<u64> {
    typed.strip_prefix("master-")?.parse().ok().filter(|id| *id > 0)
}

/// Adds a master that runs and belongs to no cluster yet.
pub(super) async fn add(
    context: &Context,
    cluster: &Cluster,
    typed: &str,
    addr: SocketAddr,
    learner: bool,
) -> Result<(), Failure> {
    let id = required(typed)?;
    let masters = if learner {
        cluster.change_masters(MastersOp::Add { id, addr }).await?
    } else {
        take_in(context, cluster, id, Some(addr), None).await?
    };
    let duty = if learner { "learner" } else { "voter" };
    done(context, id, duty, &masters)?;
    note_addresses(context);
    Ok(())
}

/// Lets a new master take the place of an old one.
pub(super) async fn replace(
    context: &Context,
    cluster: &Cluster,
    old: u64,
    typed: &str,
    addr: Option<SocketAddr>,
) -> Result<(), Failure> {
    let id = required(typed)?;
    let known = cluster.masters().await?.iter().any(|master| master.id == id);
    if !known && addr.is_none() {
        return Err(Failure::Usage(format!(
            "{typed} is no member yet: say where it is reached with --addr"
        )));
    }
    let masters = take_in(context, cluster, id, addr.filter(|_| !known), Some(old)).await?;
    done(context, id, "voter", &masters)?;
    context.out.note(format_args!(
        "master-{old} is removed; its id is not used again. Stop it in a few seconds"
    ));
    note_addresses(context);
    Ok(())
}

/// Removes a master.
pub(super) async fn remove(context: &Context, cluster: &Cluster, id: u64) -> Result<(), Failure> {
    let masters = cluster.change_masters(MastersOp::Remove { id }).await?;
    done(context, id, "removed", &masters)
}

/// Adds a master, unless it is there, waits until it has caught up, and gives it a vote.
pub(crate) async fn take_in(
    context: &Context,
    cluster: &Cluster,
    id: u64,
    addr: Option<SocketAddr>,
    instead_of: Option<u64>,
) -> Result<Vec<MasterView>, Failure> {
    let mut masters = match addr {
        Some(addr) => cluster.change_masters(MastersOp::Add { id, addr }).await?,
        None => cluster.masters().await?,
    };
    let behind = |masters: &[MasterView]| masters.iter().find(|master| master.id == id).map(lacks);
    let gone = || Failure::Failed(format!("master-{id} is no member any more"));
    let mut before = behind(&masters).ok_or_else(gone)?;
    let countdown = Countdown::new(&context.out, "entries left", before);
    let mut moved = Instant::now();
    while before > BEHIND_MAX {
        tokio::time::sleep(LOOK_EVERY).await;
        masters = cluster.masters().await?;
        let now = behind(&masters).ok_or_else(gone)?;
        countdown.left(now);
        if now < before {
            moved = Instant::now();
        }
        before = now;
        if moved.elapsed() > STUCK_FOR {
            countdown.clear();
            return Err(Failure::Failed(format!(
                "master-{id} does not catch up: {now} entries are left. Does it run, and does it \
                 reach the others? It stays a member without a vote; `atoll node add` again goes on"
            )));
        }
    }
    countdown.clear();
    Ok(cluster.change_masters(MastersOp::Promote { id, instead_of }).await?)
}

/// How many entries a master lacks before it votes. One that has acknowledged none yet is waited for,
/// however few there are.
fn lacks(master: &MasterView) -> u64 {
    match master {
        MasterView { voter: true, .. } => 0,
        MasterView { log_index: 0, behind, .. } => (*behind).max(BEHIND_MAX + 1),
        MasterView { behind, .. } => *behind,
    }
}

fn required(typed: &str) -> Result<u64, Failure> {
    id_of(typed).ok_or_else(|| {
        Failure::Usage(format!("{typed:?} is not the name of a master, such as master-4"))
    })
}

fn done(
    context: &Context,
    id: u64,
    duty: &'static str,
    masters: &[MasterView],
) -> Result<(), Failure> {
    if context.out.json() {
        let name = format!("master-{id}");
        return context.out.object(&DoneObject { event: "done", id, name, duty, masters });
    }
    let what = match duty {
        "voter" => "has a vote",
        "learner" => "gets the log; it has no vote",
        _ => "is removed; its id is not used again. Stop it if it runs, in a few seconds",
    };
    context.out.note(format_args!("master-{id} {what}"));
    let voters = masters.iter().filter(|master| master.voter).count();
    if voters.is_multiple_of(2) {
        context.out.note(format_args!(
            "{voters} masters vote now, which survive no more losses than {}: add or remove one",
            voters - 1
        ));
    }
    Ok(())
}

fn note_addresses(context: &Context) {
    context.out.note(
        "whoever is in touch with the masters knows of it in a few seconds; name its address in \
         `peers` of the other masters, and in new configurations",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_acknowledged_nothing_is_waited_for() {
        let view = |voter, log_index, behind| {
            let addr = "10.0.0.4:7000".to_owned();
            lacks(&MasterView { id: 4, addr, voter, leads: false, log_index, behind })
        };
        assert!(view(false, 0, 3) > BEHIND_MAX && view(false, 0, 9000) == 9000);
        assert_eq!(view(false, 7, 3), 3);
        assert_eq!(view(true, 0, 9), 0);
    }

    #[test]
    fn masters_are_named_by_role_and_number() {
        assert_eq!(id_of("master-4"), Some(4));
        for typed in ["master-0", "master-", "4", "edge-4", "master-x"] {
            assert_eq!(id_of(typed), None, "{typed}");
            assert!(required(typed).is_err());
        }
    }
}
