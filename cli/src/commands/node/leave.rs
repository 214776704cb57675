//! `atoll node drain|undrain|replace|rm`: nodes that go, and waiting until they may.

use std::time::{Duration, Instant};

use atoll_client::Cluster;
use atoll_proto::cluster::{ClusterView, Duty, NodeInfo, NodeKind, NodeState, NodeView};
use atoll_proto::master::NodeOp;
use atoll_proto::{Code, NodeId};
use serde::Serialize;

use super::{change, find, find_chunkserver};
use crate::commands::status;
use crate::connect::Context;
use crate::progress::Countdown;
use crate::report::Failure;
use crate::text;

/// How often the masters are asked how far a move is.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A move that cannot go on is waited for this long: a server that is starting may take groups.
const STUCK_FOR: Duration = Duration::from_secs(10);
/// The same while groups are on the move, of this node or of others that come first.
const SLOW_FOR: Duration = Duration::from_secs(30 * 60);

/// The final object of `--json`.
#[derive(Serialize)]
struct DoneObject<'a> {
    event: &'static str,
    id: u64,
    name: &'a str,
    /// `active`, `draining`, `gone` or `removed`.
    duty: &'static str,
    /// Groups it is still a member of.
    groups: usize,
    /// Groups that are moving away from it.
    groups_leaving: usize,
}

/// Moves a chunkserver's groups to others, or an edge's visitors.
pub(super) async fn drain(
    context: &Context,
    cluster: &Cluster,
    typed: &str,
    wait: bool,
) -> Result<(), Failure> {
    let node = known(cluster, typed).await?;
    change(cluster, NodeOp::Drain { node: node.id }).await?;
    if wait {
        until_empty(context, cluster, &node, true).await?;
    }
    done(context, cluster, &node, "draining").await
}

/// It keeps its share again.
pub(super) async fn undrain(
    context: &Context,
    cluster: &Cluster,
    typed: &str,
) -> Result<(), Failure> {
    let node = known(cluster, typed).await?;
    change(cluster, NodeOp::Undrain { node: node.id }).await?;
    done(context, cluster, &node, "active").await
}

/// Gives a lost chunkserver's groups to others, once there is the one that takes its place.
pub(super) async fn replace(
    context: &Context,
    cluster: &Cluster,
    old: &str,
    new: &str,
    wait: bool,
) -> Result<(), Failure> {
    let view = cluster.refresh_view().await?;
    let node = find_chunkserver(&view, old)?.info.clone();
    check_replacement(&view, &node, new)?;
    change(cluster, NodeOp::Lose { node: node.id }).await?;
    if wait {
        until_empty(context, cluster, &node, true).await?;
    }
    done(context, cluster, &node, "gone").await
}

fn check_replacement(view: &ClusterView, old: &NodeInfo, typed: &str) -> Result<(), Failure> {
    let new = find_chunkserver(view, typed)?;
    let name = &new.info.name;
    let wrong = if new.info.id == old.id {
        "is the one to be replaced: name the server that takes its place"
    } else if new.state == NodeState::Down {
        "is down: start it first"
    } else if new.duty != Duty::Active {
        "is draining or gone itself: `atoll node undrain` it, or take another"
    } else if new.info.weight == 0 {
        "has weight 0 and so takes no groups"
    } else {
        return Ok(());
    };
    Err(Failure::Failed(format!("{name} {wrong}")))
}

/// Forgets a node.
pub(super) async fn remove(
    context: &Context,
    cluster: &Cluster,
    typed: &str,
    force: bool,
) -> Result<(), Failure> {
    let view = cluster.refresh_view().await?;
    let node = find(&view, typed)?.info.clone();
    let id = node.id;
    let plain = change(cluster, NodeOp::Remove { node: id }).await;
    match plain {
        Err(failure)
            if force && node.kind == NodeKind::Edge && failure.code() == Some(Code::Conflict) =>
        {
            change(cluster, NodeOp::RemoveGone { node: id }).await?;
        }
        Err(failure) if force && failure.code() == Some(Code::Conflict) => {
            check_forced(&view, &node)?;
            change(cluster, NodeOp::Lose { node: id }).await?;
            until_empty(context, cluster, &node, false).await?;
            change(cluster, NodeOp::RemoveGone { node: id }).await?;
        }
        other => other?,
    }
    if context.out.json() {
        return context.out.object(&DoneObject {
            event: "done",
            id: id.0,
            name: &node.name,
            duty: "removed",
            groups: 0,
            groups_leaving: 0,
        });
    }
    let rest = match node.kind {
        NodeKind::Chunkserver => "Stop it if it runs, and keep or erase its disk",
        NodeKind::Edge => "No publish waits for it: start it again only under another id",
    };
    context.out.note(format_args!("removed {}; its id {id} is not used again. {rest}", node.name));
    Ok(())
}

/// Refuses to declare a server lost that runs while nobody could take its groups: it would stay that
/// way until somebody noticed. One that is down may be given up all the same, so that its groups can
/// go elsewhere when their other members are given up, too.
fn check_forced(view: &ClusterView, node: &NodeInfo) -> Result<(), Failure> {
    let up = |it: &&NodeView| it.state == NodeState::Up;
    let runs = view.nodes.iter().filter(up).any(|it| it.info.id == node.id);
    let others = view.nodes.iter().filter(up).filter(|it| {
        let takes = it.info.kind == NodeKind::Chunkserver && it.info.weight > 0;
        takes && it.duty == Duty::Active && it.info.id != node.id
    });
    let groups = view.table.members.iter().filter(|members| members.contains(&node.id));
    let (takers, needed) = (others.count(), groups.map(Vec::len).max().unwrap_or(0));
    if !runs || takers >= needed {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{} runs and keeps placement groups of {needed} members, and only {} could take them: add one \
         first; nothing was changed",
        node.name,
        text::count(takers as u64, "other chunkserver")
    )))
}

async fn known(cluster: &Cluster, typed: &str) -> Result<NodeInfo, Failure> {
    let view = cluster.refresh_view().await?;
    Ok(find(&view, typed)?.info.clone())
}

async fn done(
    context: &Context,
    cluster: &Cluster,
    node: &NodeInfo,
    duty: &'static str,
) -> Result<(), Failure> {
    let (groups, groups_leaving) = cluster.refresh_view().await?.table.groups_of(node.id);
    let name = &node.name;
    if context.out.json() {
        let id = node.id.0;
        let object = DoneObject { event: "done", id, name, duty, groups, groups_leaving };
        return context.out.object(&object);
    }
    let left = text::count((groups + groups_leaving) as u64, "group");
    if node.kind == NodeKind::Edge {
        let serves = node.edge.as_ref().is_some_and(|edge| edge.serves);
        context.out.note(if duty == "active" {
            format!("{name} is used again")
        } else if !serves {
            format!("{name} is asked by no edge any more, within seconds")
        } else {
            format!(
                "{name} gets no new visitors; those that know its address leave as their answers \
                 expire, within half a minute"
            )
        });
        return Ok(());
    }
    match (duty, groups + groups_leaving) {
        ("active", _) => context.out.note(format_args!("{name} keeps its share again")),
        (_, 0) => context
            .out
            .note(format_args!("{name} keeps nothing any more; `atoll node rm {name}` forgets it")),
        (_, _) => context.out.note(format_args!(
            "{left} of {name} move to others; `atoll node ls` shows how many are left"
        )),
    }
    Ok(())
}

/// Waits until a node is a member of no group and, with `read`, is not read from any more either.
async fn until_empty(
    context: &Context,
    cluster: &Cluster,
    node: &NodeInfo,
    read: bool,
) -> Result<(), Failure> {
    let left = |view: &ClusterView| {
        let (member, leaving) = view.table.groups_of(node.id);
        member + if read { leaving } else { 0 }
    };
    let mut view = cluster.refresh_view().await?;
    let mut before = left(&view);
    let countdown = Countdown::new(&context.out, "groups left", before as u64);
    let (mut moved, mut epoch) = (Instant::now(), view.table.epoch);
    while before > 0 {
        tokio::time::sleep(LOOK_EVERY).await;
        view = cluster.refresh_view().await?;
        let now = left(&view);
        countdown.left(now as u64);
        if now < before || view.table.epoch != epoch {
            moved = Instant::now();
        }
        (before, epoch) = (now, view.table.epoch);
        let patience = if view.table.leaving.is_empty() { STUCK_FOR } else { SLOW_FOR };
        if moved.elapsed() > patience {
            let reason = why_stuck(cluster, node.id).await?;
            countdown.clear();
            return Err(Failure::Failed(format!(
                "{} of {} stay where they are: {reason}; the move goes on by itself once it can",
                text::count(now as u64, "group"),
                node.name
            )));
        }
    }
    countdown.clear();
    Ok(())
}

async fn why_stuck(cluster: &Cluster, node: NodeId) -> Result<String, Failure> {
    let status = status::ask(cluster).await?;
    let found = status.chunkservers.iter().find(|server| server.id == node);
    if found.is_some_and(|server| server.duty == Duty::Active) {
        return Ok("it is active again".to_owned());
    }
    if status.placement.is_empty() {
        return Ok("the masters do not say why; look into the log of the leading one".to_owned());
    }
    Ok(status.placement.join("; "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::tests::view;
    use super::*;

    #[test]
    fn a_replacement_must_be_there_and_willing() {
        let mut view = view();
        let old = view.nodes[0].info.clone();
        let text =
            |view: &ClusterView, new| check_replacement(view, &old, new).unwrap_err().to_string();
        check_replacement(&view, &old, "7").unwrap();
        assert!(text(&view, "c1").contains("the one to be replaced"));
        assert!(text(&view, "e1").contains("is an edge"));
        assert!(text(&view, "9").contains("no node 9"));
        view.nodes[1].duty = Duty::Draining;
        assert!(text(&view, "7").contains("draining"));
        view.nodes[1].state = NodeState::Down;
        assert!(text(&view, "7").contains("start it first"));
        view.nodes[1].state = NodeState::Up;
        view.nodes[1].duty = Duty::Active;
        view.nodes[1].info.weight = 0;
        assert!(text(&view, "7").contains("weight 0"));
    }
    #[test]
    fn who_runs_is_not_given_up_in_vain() {
        let mut view = view();
        let node = view.nodes[0].info.clone();
        check_forced(&view, &node).unwrap();
        view.table.members = vec![vec![NodeId(1), NodeId(2)], vec![NodeId(2)]];
        let text = check_forced(&view, &node).unwrap_err().to_string();
        assert!(text.contains("only 1 other chunkserver could take them"), "{text}");
        // One more can take them, unless it is leaving itself.
        let mut third = view.nodes[1].clone();
        third.info.id = NodeId(3);
        view.nodes.push(third);
        check_forced(&view, &node).unwrap();
        view.nodes[3].duty = Duty::Draining;
        assert!(check_forced(&view, &node).is_err());
        view.nodes[0].state = NodeState::Down;
        check_forced(&view, &node).unwrap();
    }
}
