//! `atoll status`: is everything healthy, and what is there.

use std::time::Duration;

use atoll_client::Cluster;
use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::Duty;
use atoll_proto::master::{
    ChunkserverStatus, EdgeStatus, MasterRequest, MasterResponse, MasterStatus, Status,
};
use atoll_proto::{Seq, limits};
use clap::Args;
use serde::Serialize;

use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::{Exit, Failure};
use crate::{table, text};

/// An edge that is behind by the last publish, and a chunkserver that is fetching what was just
/// written, may be given this long before it counts.
const CATCH_UP: Duration = Duration::from_millis(200);
const CATCH_UP_TRIES: usize = 15;
/// A master may be so many entries of the log behind before it counts: it has them within moments.
const BEHIND_MAX: u64 = 1000;
/// The role of a master that does not answer the leader.
const SILENT: &str = "silent";

/// Show how the cluster does; exit code 0 only if it is healthy
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES
  atoll status
  atoll status --json")]
pub(crate) struct StatusArgs {}

/// The object of the contract.
#[derive(Debug, Serialize)]
struct StatusObject {
    healthy: bool,
    reasons: Vec<String>,
    masters: Vec<MasterObject>,
    chunkservers: Vec<ChunkserverObject>,
    placement_groups: GroupsObject,
    chunks: ChunksObject,
    edges: Vec<EdgeObject>,
    reconcile: ReconcileObject,
}

#[derive(Debug, Serialize)]
struct MasterObject {
    id: u64,
    role: String,
    log_index: u64,
}

#[derive(Debug, Serialize)]
struct ChunkserverObject {
    id: u64,
    zone: String,
    state: &'static str,
    chunks: u64,
    bytes: u64,
    /// `null` while it has no chunk.
    oldest_unverified_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct GroupsObject {
    total: u32,
    clean: u32,
    degraded: u32,
    lost: u32,
}

#[derive(Debug, Serialize)]
struct ChunksObject {
    live: u64,
    /// Those of groups with a member down, and copies that members which are up lack.
    under_replicated: u64,
    corrupt_found: u64,
    repaired: u64,
    quarantined: u64,
    dead_letters: u64,
}

#[derive(Debug, Serialize)]
struct EdgeObject {
    name: String,
    role: String,
    region: String,
    seq: u64,
    lease_ms: u64,
    ready: bool,
}

#[derive(Debug, Serialize)]
struct ReconcileObject {
    bytes_sent: u64,
    roots_compared: u64,
    mismatches: u64,
}

/// Does it.
pub(crate) async fn run(context: &Context, _args: StatusArgs) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    let status = settled(&cluster).await?;
    let reasons = reasons(&status);
    let healthy = reasons.is_empty();
    if context.out.json() {
        context.out.object(&object(status, reasons))?;
    } else {
        context.out.line(verdict(&status, &reasons))?;
        if let Some(note) = too_few(&status) {
            context.out.line(format_args!("but {note}"))?;
        }
        for part in tables(&status) {
            context.out.line("")?;
            context.out.line(part)?;
        }
    }
    if healthy { Ok(()) } else { Err(Failure::Said(Exit::Failed)) }
}

/// Asks the leader.
pub(crate) async fn ask(cluster: &Cluster) -> Result<Status, Failure> {
    match cluster.master(&MasterRequest::Status, limits::METADATA_DEADLINE).await? {
        MasterResponse::Status(status) => Ok(*status),
        _ => Err(unexpected("status")),
    }
}

/// The status, once edges and chunkservers had a moment to catch up with what was just changed.
pub(crate) async fn settled(cluster: &Cluster) -> Result<Status, Failure> {
    let mut status = ask(cluster).await?;
    for _ in 0..CATCH_UP_TRIES {
        let behind = status.edges.iter().any(|edge| edge.up && edge.seq < status.publish_seq);
        let fetching = status
            .chunkservers
            .iter()
            .any(|server| server.up && (server.stat.lacking > 0 || differs(server, &status)));
        if !behind && !fetching {
            break;
        }
        tokio::time::sleep(CATCH_UP).await;
        status = ask(cluster).await?;
    }
    Ok(status)
}

/// Why the cluster is not healthy; nothing when it is.
pub(crate) fn reasons(status: &Status) -> Vec<String> {
    let mut reasons = Vec::new();
    if !status.masters.iter().any(|master| master.role == "leader") {
        reasons.push("no master leads".to_owned());
    }
    reasons.extend(master_reasons(&status.masters));
    if status.chunkservers.is_empty() {
        reasons.push("there are no chunkservers".to_owned());
    }
    reasons.extend(status.placement.iter().cloned());
    reasons.extend(status.live.iter().cloned());
    // One that was replaced and is relied on for nothing is not needed.
    let needed = |server: &&ChunkserverStatus| {
        server.duty != Duty::Gone || server.groups > 0 || status.groups_moving > 0
    };
    for server in status.chunkservers.iter().filter(|server| !server.up).filter(needed) {
        reasons.push(format!("{} is down", server.name));
    }
    for edge in &status.edges {
        reasons.extend(edge_reason(edge, status.publish_seq));
    }
    for server in status.chunkservers.iter().filter(|server| server.up) {
        reasons.extend(server_reasons(server));
        if differs(server, status) && server.stat.lacking == 0 {
            reasons.push(format!("{} has not exactly what it should have", server.name));
        }
    }
    if let Some(reason) = &status.frozen {
        reasons.push(format!("collection is frozen: {reason}"));
    }
    if status.groups_moving > 0 {
        reasons.push(format!("{} placement groups are moving", status.groups_moving));
    }
    if status.groups_lost > 0 {
        reasons.push(format!("{} placement groups have no member up", status.groups_lost));
    }
    if status.groups_degraded > 0 {
        reasons.push(format!(
            "{} placement groups have members that are down or may lack something",
            status.groups_degraded
        ));
    }
    if status.groups_clean + status.groups_degraded + status.groups_lost < status.groups {
        reasons.push("some placement groups have no members yet".to_owned());
    }
    reasons
}

/// Which masters do not take part as they should.
fn master_reasons(masters: &[MasterStatus]) -> Vec<String> {
    let last = masters.iter().map(|master| master.log_index).max().unwrap_or(0);
    let mut reasons = Vec::new();
    for MasterStatus { id, role, log_index } in masters {
        let behind = last.saturating_sub(*log_index);
        // Of whom nothing is known yet, as when another has begun to lead, nothing is said.
        let known = *log_index > 0;
        if role == SILENT {
            reasons.push(format!("master {id} is silent"));
        } else if known && behind > BEHIND_MAX {
            reasons.push(format!("master {id} is {behind} entries behind"));
        }
    }
    reasons
}

/// Says so when chunks have fewer copies than they should because there are too few chunkservers. Whoever
/// set up so few knows it: that alone does not make a cluster unhealthy.
fn too_few(status: &Status) -> Option<String> {
    let copies: u64 = status.chunkservers.iter().map(|server| u64::from(server.groups)).sum();
    let groups = u64::from(status.groups);
    let members = status.chunkservers.iter().filter(|server| server.groups > 0).count();
    let all = status.groups_clean + status.groups_degraded + status.groups_lost == status.groups;
    let wanted = limits::REPLICAS;
    let lacking = all && members < wanted && copies < groups.saturating_mul(wanted as u64);
    lacking.then(|| {
        format!(
            "every chunk has only {members} of {wanted} copies: add chunkservers until there are \
             {wanted}"
        )
    })
}

/// Whether a chunkserver has not what it should. While collection is frozen that is no reason: one
/// that has halted, or is of an earlier version, still takes for live what a restored master does not
/// know.
pub(crate) fn differs(server: &ChunkserverStatus, status: &Status) -> bool {
    server.in_sync == Some(false) && status.frozen.is_none()
}

/// What is wrong with what a chunkserver has.
fn server_reasons(server: &ChunkserverStatus) -> Vec<String> {
    let (name, stat) = (&server.name, &server.stat);
    let mut reasons = Vec::new();
    if let Some(reason) = &stat.halted {
        reasons.push(format!("{name} has halted: {reason}"));
    }
    if stat.disk_is_full() {
        reasons.push(format!("{name}'s disk is full"));
    }
    if stat.refilling {
        reasons.push(format!("{name} lost its store and is being filled again"));
    }
    if stat.dead_letters > 0 {
        let count = text::count(stat.dead_letters, "chunk");
        reasons.push(format!("{name} cannot get {count} from anywhere"));
    } else if stat.lacking > 0 {
        reasons.push(format!("{name} lacks {}", text::count(stat.lacking, "chunk")));
    }
    // A server that just started, or a new leader: what it has may be anything.
    if server.up && server.in_sync.is_none() && server.groups > 0 {
        reasons.push(format!("{name} has not been compared with what it should have yet"));
    }
    reasons
}

/// Why an edge does not serve what was published last; `None` when it does.
pub(crate) fn edge_reason(edge: &EdgeStatus, latest: Seq) -> Option<String> {
    if !edge.up {
        Some(format!("{} is down", edge.name))
    } else if !edge.ready {
        Some(format!("{} is not ready", edge.name))
    } else if edge.seq < latest {
        Some(format!("{} is at publish {} of {latest}", edge.name, edge.seq))
    } else {
        None
    }
}

fn verdict(status: &Status, reasons: &[String]) -> String {
    if reasons.is_empty() {
        return format!(
            "healthy: {}, {}, {}, {}",
            text::count(status.masters.len() as u64, "master"),
            text::count(status.chunkservers.len() as u64, "chunkserver"),
            text::count(status.edges.len() as u64, "edge"),
            text::count(status.sites, "site"),
        );
    }
    format!("not healthy: {}", reasons.join("; "))
}

fn object(status: Status, reasons: Vec<String>) -> StatusObject {
    let sum = |count: fn(&ChunkStat) -> u64| -> u64 {
        status.chunkservers.iter().map(|server| count(&server.stat)).sum()
    };
    let lacking: u64 =
        status.chunkservers.iter().filter(|it| it.up).map(|it| it.stat.lacking).sum();
    let chunks = ChunksObject {
        live: status.chunks_live,
        under_replicated: status.chunks_degraded + lacking,
        corrupt_found: sum(|stat| stat.corrupt_found),
        repaired: sum(|stat| stat.repaired),
        quarantined: sum(|stat| stat.quarantined),
        dead_letters: sum(|stat| stat.dead_letters),
    };
    let reconcile = ReconcileObject {
        bytes_sent: sum(|stat| stat.compared_bytes),
        roots_compared: sum(|stat| stat.roots_compared),
        mismatches: sum(|stat| stat.mismatches),
    };
    StatusObject {
        healthy: reasons.is_empty(),
        reasons,
        placement_groups: GroupsObject {
            total: status.groups,
            clean: status.groups_clean,
            degraded: status.groups_degraded,
            lost: status.groups_lost,
        },
        chunks,
        masters: status
            .masters
            .into_iter()
            .map(|m| MasterObject { id: m.id, role: m.role, log_index: m.log_index })
            .collect(),
        chunkservers: status
            .chunkservers
            .into_iter()
            .map(|server| ChunkserverObject {
                id: server.id.0,
                zone: server.zone,
                state: up(server.up),
                chunks: server.stat.chunks,
                bytes: server.stat.bytes,
                oldest_unverified_s: server.stat.oldest_unverified_s,
            })
            .collect(),
        edges: status
            .edges
            .into_iter()
            .map(|edge| EdgeObject {
                name: edge.name,
                role: edge.role,
                region: edge.region,
                seq: edge.seq.0,
                lease_ms: edge.lease_ms,
                ready: edge.ready,
            })
            .collect(),
        reconcile,
    }
}

fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn in_sync(server: &ChunkserverStatus) -> &'static str {
    match server.in_sync {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    }
}

/// Seconds, roughly, for people.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn tables(status: &Status) -> Vec<String> {
    let masters: Vec<Vec<String>> = status
        .masters
        .iter()
        .map(|m| vec![m.id.to_string(), m.role.clone(), m.log_index.to_string()])
        .collect();
    let servers: Vec<Vec<String>> = status
        .chunkservers
        .iter()
        .map(|server| {
            vec![
                server.name.clone(),
                server.zone.clone(),
                up(server.up).to_owned(),
                server.stat.chunks.to_string(),
                text::bytes(server.stat.bytes),
                text::bytes(server.stat.free_bytes),
                in_sync(server).to_owned(),
                server.stat.lacking.to_string(),
                server.stat.oldest_unverified_s.map_or("-".to_owned(), age),
            ]
        })
        .collect();
    let edges: Vec<Vec<String>> = status
        .edges
        .iter()
        .map(|edge| {
            let state = if edge.ready { "ready" } else { up(edge.up) };
            vec![
                edge.name.clone(),
                edge.role.clone(),
                edge.region.clone(),
                state.to_owned(),
                edge.seq.to_string(),
            ]
        })
        .collect();
    vec![
        table::render(&[">master", "role", ">log index"], &masters),
        table::render(
            &[
                "chunkserver",
                "zone",
                "state",
                ">chunks",
                ">used",
                ">free",
                "in sync",
                ">lacking",
                ">unverified for",
            ],
            &servers,
        ),
        table::render(&["edge", "role", "region", "state", ">publish seq"], &edges),
        format!(
            "placement groups: {} clean, {} degraded, {} lost of {}; {} live chunks; publish seq {}",
            status.groups_clean,
            status.groups_degraded,
            status.groups_lost,
            status.groups,
            status.chunks_live,
            status.publish_seq,
        ),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::NodeId;

    use super::*;

    fn healthy() -> Status {
        Status {
            index: 9,
            masters: vec![MasterStatus { id: 1, role: "leader".into(), log_index: 9 }],
            chunkservers: (1..=3)
                .map(|id| ChunkserverStatus {
                    id: NodeId(id),
                    name: format!("chunkserver-{id}"),
                    zone: format!("z{id}"),
                    up: true,
                    stat: ChunkStat {
                        chunks: 3,
                        bytes: 30,
                        free_bytes: 50 << 30,
                        total_bytes: 100 << 30,
                        corrupt_found: u64::from(id == 1),
                        ..ChunkStat::default()
                    },
                    duty: Duty::Active,
                    in_sync: Some(true),
                    groups: 4096,
                })
                .collect(),
            edges: vec![EdgeStatus {
                id: NodeId(101),
                name: "edge-1".into(),
                role: "edge".into(),
                region: "eu".into(),
                seq: Seq(7),
                lease_ms: 9000,
                ready: true,
                up: true,
            }],
            groups: 4096,
            groups_clean: 4096,
            groups_degraded: 0,
            groups_lost: 0,
            chunks_live: 3,
            chunks_degraded: 0,
            publish_seq: Seq(7),
            sites: 1,
            current: vec![],
            groups_moving: 0,
            frozen: None,
            chunks_unreferenced: 0,
            scrub: 0,
            placement: vec![],
            live: vec![],
        }
    }

    #[test]
    fn healthy_means_that_nothing_is_wrong() {
        assert!(reasons(&healthy()).is_empty());
        assert!(verdict(&healthy(), &[]).starts_with("healthy: 1 master, 3 chunkservers"));
        let check = |spoil: fn(&mut Status), reason: &str| {
            let mut status = healthy();
            spoil(&mut status);
            let text = verdict(&status, &reasons(&status));
            assert!(text.starts_with("not healthy: ") && text.contains(reason), "{text}");
        };
        check(|s| s.masters[0].role = "candidate".into(), "no master leads");
        let other = |role: &str, log_index| MasterStatus { id: 2, role: role.into(), log_index };
        let mut two = healthy();
        two.masters.push(other("follower", 9));
        (two.masters[0].log_index, two.masters[1].log_index) = (2000, 1000);
        assert!(reasons(&two).is_empty(), "it has the rest within moments");
        two.masters[1] = other("follower", 999);
        assert_eq!(reasons(&two), ["master 2 is 1001 entries behind"]);
        two.masters[1] = other(SILENT, 999);
        assert_eq!(reasons(&two), ["master 2 is silent"]);
        check(|s| s.placement = vec!["3 groups stay".into()], "3 groups stay");
        let mut room = healthy();
        room.chunkservers[0].stat.free_bytes = 264 << 20;
        assert!(reasons(&room).is_empty(), "there is room for one more");
        check(|s| s.chunkservers[2].stat.free_bytes = 1 << 20, "chunkserver-3's disk is full");
        for left in [2, 1] {
            let mut few = healthy();
            few.chunkservers.truncate(left);
            assert!(reasons(&few).is_empty(), "{left}");
            let note = too_few(&few).unwrap();
            assert!(note.contains(&format!("only {left} of 3 copies")), "{note}");
        }
        assert_eq!(too_few(&healthy()), None);
        check(|s| s.live = vec!["live site blog: not sealed".into()], "live site blog");
        check(|s| s.chunkservers[0].up = false, "chunkserver-1 is down");
        check(|s| s.edges[0].up = false, "edge-1 is down");
        check(|s| s.edges[0].ready = false, "edge-1 is not ready");
        check(|s| s.publish_seq = Seq(8), "edge-1 is at publish 7 of 8");
        check(|s| (s.groups_lost, s.groups_clean) = (1, 4095), "no member up");
        check(|s| (s.groups_degraded, s.groups_clean) = (2, 4094), "2 placement groups");
        check(|s| s.groups_clean = 0, "no members yet");
        check(|s| s.frozen = Some("a drill".into()), "frozen: a drill");
        check(|s| s.groups_moving = 3, "3 placement groups are moving");
        check(|s| s.chunkservers[0].stat.halted = Some("too much".into()), "halted: too much");
        check(|s| s.chunkservers[0].stat.refilling = true, "being filled again");
        check(|s| s.chunkservers[0].stat.lacking = 2, "lacks 2 chunks");
        check(|s| s.chunkservers[0].stat.dead_letters = 1, "cannot get 1 chunk from anywhere");
        check(|s| s.chunkservers[0].in_sync = Some(false), "not exactly what it should have");
        let mut frozen = healthy();
        frozen.chunkservers[0].in_sync = Some(false);
        frozen.frozen = Some("restored".into());
        assert_eq!(reasons(&frozen), ["collection is frozen: restored"]);
    }

    #[test]
    fn the_object_has_exactly_the_fields_of_the_contract() {
        let value = serde_json::to_value(object(healthy(), Vec::new())).unwrap();
        let fields = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let sorted = |names: &[&str]| {
            let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            names.sort();
            names
        };
        let same = |value: &serde_json::Value, names: &[&str]| {
            let mut found = fields(value);
            found.sort();
            assert_eq!(found, sorted(names));
        };
        same(
            &value,
            &[
                "healthy",
                "reasons",
                "masters",
                "chunkservers",
                "placement_groups",
                "chunks",
                "edges",
                "reconcile",
            ],
        );
        same(&value["masters"][0], &["id", "role", "log_index"]);
        same(
            &value["chunkservers"][0],
            &["id", "zone", "state", "chunks", "bytes", "oldest_unverified_s"],
        );
        same(&value["placement_groups"], &["total", "clean", "degraded", "lost"]);
        same(
            &value["chunks"],
            &[
                "live",
                "under_replicated",
                "corrupt_found",
                "repaired",
                "quarantined",
                "dead_letters",
            ],
        );
        same(&value["edges"][0], &["name", "role", "region", "seq", "lease_ms", "ready"]);
        same(&value["reconcile"], &["bytes_sent", "roots_compared", "mismatches"]);
        assert_eq!(value["chunks"]["corrupt_found"], 1);
        assert_eq!(value["chunks"]["under_replicated"], 0);
    }
}
