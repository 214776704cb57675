//! Which chunkservers are to be taken for gone, and which are back: a plain function of how long
//! each has been silent.
//!
//! A server that is silent for long is replaced by itself, so that a broken disk at night costs
//! nobody's sleep. But when many are silent the reason is more likely the network, and copying
//! half the data over what is left of it would make things worse; then an operator decides.

use std::collections::BTreeMap;
use std::time::Duration;

use atoll_proto::NodeId;
use atoll_proto::cluster::Duty;

/// More than one of so many servers silent: that is not a disk.
const SHARE_MAX: usize = 3;
/// More than so many whole zones silent: that is not a rack.
const ZONES_MAX: usize = 1;

/// A chunkserver as it is heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Which.
    pub(crate) id: NodeId,
    /// Its name, for people.
    pub(crate) name: String,
    /// Its failure domain.
    pub(crate) zone: String,
    /// What is wanted of it.
    pub(crate) duty: Duty,
    /// The duty it takes up again by itself, when it was taken to be gone for its silence.
    pub(crate) returns_to: Option<Duty>,
    /// Whether it is heard of.
    pub(crate) up: bool,
    /// For how long it has not been.
    pub(crate) silent: Duration,
}

/// What follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Nodes with the duty they have and the one they get.
    pub(crate) changes: Vec<(NodeId, Duty, Duty)>,
    /// Why nodes that are silent for too long are not replaced.
    pub(crate) kept: Option<String>,
}

/// Judges all chunkservers.
pub(crate) fn judge(servers: &[Standing], patience: Duration, replicas: usize) -> Verdict {
    let mut verdict = Verdict::default();
    for server in servers.iter().filter(|server| server.up && server.duty == Duty::Gone) {
        verdict.changes.extend(server.returns_to.map(|duty| (server.id, Duty::Gone, duty)));
    }
    // Those that an operator has given up do not speak for or against the network.
    let counted: Vec<&Standing> = servers
        .iter()
        .filter(|server| server.duty != Duty::Gone || server.returns_to.is_some())
        .collect();
    let late: Vec<&Standing> = counted
        .iter()
        .copied()
        .filter(|server| server.duty != Duty::Gone && !server.up && server.silent >= patience)
        .collect();
    if late.is_empty() {
        return verdict;
    }
    match objection(&counted, replicas) {
        Some(reason) => {
            let names: Vec<&str> = late.iter().map(|server| server.name.as_str()).collect();
            verdict.kept = Some(format!(
                "{} silent for more than {} s, but not replaced: {reason}",
                names.join(", "),
                patience.as_secs()
            ));
        }
        None => {
            let gone = late.iter().map(|server| (server.id, server.duty, Duty::Gone));
            verdict.changes.extend(gone);
        }
    }
    verdict
}

/// Why silent servers are not to be replaced now.
fn objection(servers: &[&Standing], replicas: usize) -> Option<String> {
    let down = servers.iter().filter(|server| !server.up).count();
    let mut zones: BTreeMap<&str, bool> = BTreeMap::new();
    for server in servers {
        *zones.entry(&server.zone).or_default() |= server.up;
    }
    let dark: Vec<&str> = zones.iter().filter(|(_, up)| !**up).map(|(zone, _)| *zone).collect();
    let takers = servers.iter().filter(|server| server.up && server.duty == Duty::Active).count();
    if down * SHARE_MAX > servers.len() {
        Some(format!(
            "{down} of {} chunkservers are down, which looks like the network; `atoll node \
             replace` if they are really lost",
            servers.len()
        ))
    } else if dark.len() > ZONES_MAX {
        Some(format!(
            "zones {} are down, which looks like the network; `atoll node replace` if they are \
             really lost",
            dark.join(", ")
        ))
    } else if takers < replicas {
        Some(format!(
            "{takers} chunkservers are left for {replicas} copies; add one, and it takes over"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(900);

    fn standing(id: u64, zone: u64, silent_s: u64) -> Standing {
        Standing {
            id: NodeId(id),
            name: format!("chunkserver-{id}"),
            zone: format!("z{zone}"),
            duty: Duty::Active,
            returns_to: None,
            up: silent_s < 5,
            silent: Duration::from_secs(silent_s),
        }
    }

    fn verdict(servers: &[Standing]) -> Verdict {
        judge(servers, PATIENCE, 3)
    }

    fn four(silent_s: u64) -> Vec<Standing> {
        let mut servers: Vec<_> = (1..=3).map(|id| standing(id, id, 0)).collect();
        servers.push(standing(4, 4, silent_s));
        servers
    }

    #[test]
    fn a_server_that_is_silent_for_long_is_replaced_and_returns() {
        assert_eq!(verdict(&four(899)), Verdict::default());
        let gone = verdict(&four(900));
        assert_eq!(gone.changes, [(NodeId(4), Duty::Active, Duty::Gone)]);
        let mut servers = four(900);
        servers[3].duty = Duty::Gone;
        servers[3].returns_to = Some(Duty::Draining);
        assert_eq!(verdict(&servers), Verdict::default());
        servers[3].up = true;
        assert_eq!(verdict(&servers).changes, [(NodeId(4), Duty::Gone, Duty::Draining)]);
        // Whom an operator gave up stays so.
        servers[3].returns_to = None;
        assert_eq!(verdict(&servers), Verdict::default());
    }

    #[test]
    fn too_few_others_are_no_replacement() {
        let mut servers = four(900);
        servers.remove(0);
        let kept = verdict(&servers);
        assert_eq!(kept.changes, []);
        assert!(kept.kept.is_some_and(|text| text.contains("2 chunkservers are left")));
        let mut servers = four(900);
        servers[1].duty = Duty::Draining;
        assert_eq!(verdict(&servers).changes, []);
    }

    #[test]
    fn many_silent_servers_are_the_network() {
        let mut servers: Vec<_> = (1..=6).map(|id| standing(id, id % 3, 0)).collect();
        servers.push(standing(7, 0, 1000));
        servers.push(standing(8, 1, 1000));
        servers.push(standing(9, 2, 1000));
        assert_eq!(verdict(&servers).changes.len(), 3, "a third may be silent");
        servers.push(standing(10, 0, 10));
        let kept = verdict(&servers);
        assert_eq!(kept.changes, []);
        assert!(kept.kept.is_some_and(|text| text.contains("4 of 10") && text.contains("network")));
        // Those replaced before still count; those given up by an operator do not.
        for server in &mut servers[6..9] {
            server.duty = Duty::Gone;
            server.returns_to = Some(Duty::Active);
        }
        servers[9].silent = Duration::from_secs(1000);
        assert_eq!(verdict(&servers).changes, []);
        for server in &mut servers[6..9] {
            server.returns_to = None;
        }
        assert_eq!(verdict(&servers).changes, [(NodeId(10), Duty::Active, Duty::Gone)]);
    }

    #[test]
    fn one_zone_may_be_lost_and_two_are_the_network() {
        let mut servers: Vec<_> = (1..=8).map(|id| standing(id, 1 + id % 2, 0)).collect();
        servers.push(standing(9, 7, 1000));
        assert_eq!(verdict(&servers).changes.len(), 1);
        servers.push(standing(10, 8, 1000));
        let kept = verdict(&servers);
        assert_eq!(kept.changes, []);
        assert!(kept.kept.is_some_and(|text| text.contains("zones z7, z8")));
    }
}
