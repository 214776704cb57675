//! Which chunkservers should keep a placement group: plain functions that only propose.
//!
//! Weighted rendezvous hashing ("Weighted Distributed Hash Tables", Schindelhauer and Schomaker,
//! 2005): every server draws a number per group, -ln(u)/weight with u from a hash; the smallest
//! win. A server that comes or goes changes only the groups it wins or loses. Among the winners
//! zones that are not used yet come first. The result is stored in the replicated state, so a
//! difference in floating point between two builds never moves data.
//!
//! [`plan`] works out which groups should move next, [`silence`] which servers are to be taken for
//! gone. Who asks is [`crate::tasks::placement`].

pub(crate) mod plan;
pub(crate) mod silence;

use std::collections::HashSet;

use atoll_proto::cluster::PgTable;
use atoll_proto::{NodeId, PgId};

/// A chunkserver as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which.
    pub(crate) id: NodeId,
    /// Replicas go to different zones where there are enough.
    pub(crate) zone: String,
    /// Share of the data relative to others; 0 takes none, but its zone counts where it is a
    /// member.
    pub(crate) weight: u32,
}

/// The members a group should have, in order of preference; fewer than `replicas` only when there
/// are fewer candidates.
pub(crate) fn ideal(pg: PgId, candidates: &[Candidate], replicas: usize) -> Vec<NodeId> {
    extend(pg, Vec::new(), candidates, replicas)
}

/// Adds members to a group until it has enough; those it has stay first.
pub(crate) fn extend(
    pg: PgId,
    mut members: Vec<NodeId>,
    candidates: &[Candidate],
    replicas: usize,
) -> Vec<NodeId> {
    let used_zones: HashSet<&str> = candidates
        .iter()
        .filter(|candidate| members.contains(&candidate.id))
        .map(|candidate| candidate.zone.as_str())
        .collect();
    let mut ranked: Vec<(f64, &Candidate)> = candidates
        .iter()
        .filter(|candidate| candidate.weight > 0 && !members.contains(&candidate.id))
        .map(|candidate| (draw(pg, candidate), candidate))
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));

    let mut used_zones = used_zones;
    let mut chosen: HashSet<NodeId> = HashSet::new();
    for fresh_zones_only in [true, false] {
        for (_, candidate) in &ranked {
            if members.len() + chosen.len() >= replicas {
                break;
            }
            if chosen.contains(&candidate.id) {
                continue;
            }
            if !fresh_zones_only || used_zones.insert(&candidate.zone) {
                chosen.insert(candidate.id);
            }
        }
    }
    let in_order = ranked.iter().map(|(_, candidate)| candidate.id);
    members.extend(in_order.filter(|id| chosen.contains(id)));
    members
}

/// What should change in the table of a cluster that has no chunk yet, so that groups can be dealt
/// out anew.
pub(crate) fn deal(
    table: &PgTable,
    candidates: &[Candidate],
    replicas: usize,
) -> Vec<(PgId, Vec<NodeId>)> {
    let groups = table.members.iter().zip(0u16..);
    let wanted = groups.map(|(members, number)| {
        let pg = PgId(number);
        (pg, members, ideal(pg, candidates, replicas))
    });
    wanted.filter(|(_, had, wanted)| *had != wanted).map(|(pg, _, wanted)| (pg, wanted)).collect()
}

/// These members in the order in which the group's servers rank: every server is the first choice
/// of its share of the groups.
pub(crate) fn ranked(pg: PgId, members: &[NodeId], candidates: &[Candidate]) -> Vec<NodeId> {
    let rank = |id: &NodeId| {
        let candidate = candidates.iter().find(|candidate| candidate.id == *id);
        let weighs = candidate.filter(|candidate| candidate.weight > 0);
        weighs.map_or(f64::INFINITY, |candidate| draw(pg, candidate))
    };
    let mut members = members.to_vec();
    members.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(a.cmp(b)));
    members
}

/// The number a server draws for a group: exponentially distributed with its weight as rate.
fn draw(pg: PgId, candidate: &Candidate) -> f64 {
    let mut hasher = blake3::Hasher::new_derive_key("atoll 2026 placement v1");
    hasher.update(&pg.0.to_be_bytes());
    hasher.update(&candidate.id.0.to_be_bytes());
    let hash = hasher.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    // 53 bits, never zero: u is in (0, 1].
    let bits = (u64::from_be_bytes(bytes) >> 11) + 1;
    let unit = bits as f64 / (1u64 << 53) as f64;
    -unit.ln() / f64::from(candidate.weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_proto::ids::PG_COUNT;
    use proptest::prelude::*;

    fn server(id: u64, zone: u64, weight: u32) -> Candidate {
        Candidate { id: NodeId(id), zone: format!("z{zone}"), weight }
    }

    fn servers() -> impl Strategy<Value = Vec<Candidate>> {
        proptest::collection::vec((0u64..4, 1u32..5), 1..8).prop_map(|list| {
            list.into_iter().zip(1..).map(|((zone, weight), id)| server(id, zone, weight)).collect()
        })
    }

    proptest! {
        #[test]
        fn members_are_distinct_and_in_as_many_zones_as_can_be(
            servers in servers(), pg in 0..PG_COUNT, replicas in 1usize..4,
        ) {
            let members = ideal(PgId(pg), &servers, replicas);
            prop_assert_eq!(members.len(), replicas.min(servers.len()));
            let distinct: HashSet<_> = members.iter().collect();
            prop_assert_eq!(distinct.len(), members.len());
            let zones: HashSet<_> = servers.iter().map(|s| &s.zone).collect();
            let used: HashSet<_> =
                servers.iter().filter(|s| members.contains(&s.id)).map(|s| &s.zone).collect();
            prop_assert_eq!(used.len(), zones.len().min(members.len()));
        }

        #[test]
        fn a_new_server_changes_only_the_groups_it_enters(
            servers in servers(), zone in 0u64..5, weight in 1u32..5,
        ) {
            let mut more = servers.clone();
            more.push(server(99, zone, weight));
            for pg in (0..PG_COUNT).step_by(7) {
                let before = ideal(PgId(pg), &servers, 3);
                let after = ideal(PgId(pg), &more, 3);
                if !after.contains(&NodeId(99)) {
                    prop_assert_eq!(before, after);
                }
            }
        }

        #[test]
        fn order_of_candidates_does_not_matter(servers in servers(), pg in 0..PG_COUNT) {
            let mut reversed = servers.clone();
            reversed.reverse();
            prop_assert_eq!(ideal(PgId(pg), &servers, 3), ideal(PgId(pg), &reversed, 3));
        }

        #[test]
        fn a_group_with_data_keeps_its_members_first(
            servers in servers(), pg in 0..PG_COUNT, kept in 1usize..3,
        ) {
            let old = ideal(PgId(pg), &servers, kept);
            let members = extend(PgId(pg), old.clone(), &servers, 3);
            prop_assert!(members.starts_with(&old));
            prop_assert_eq!(members.len(), 3.min(servers.len()).max(old.len()));
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let servers = [server(1, 1, 1), server(2, 2, 2), server(3, 3, 1)];
        let mut first = [0u32; 4];
        for pg in 0..PG_COUNT {
            for id in ideal(PgId(pg), &servers, 1) {
                first[usize::try_from(id.0).unwrap_or(0)] += 1;
            }
        }
        let share = f64::from(first[2]) / f64::from(PG_COUNT);
        assert!((0.46..0.54).contains(&share), "{share}");
    }

    #[test]
    fn one_of_four_servers_enters_three_quarters_of_the_groups() {
        let three: Vec<_> = (1..=3).map(|id| server(id, id, 1)).collect();
        let mut four = three.clone();
        four.push(server(4, 4, 1));
        let moved =
            (0..PG_COUNT).filter(|pg| ideal(PgId(*pg), &four, 3).contains(&NodeId(4))).count();
        let share = moved as f64 / f64::from(PG_COUNT);
        assert!((0.72..0.78).contains(&share), "{share}");
    }

    #[test]
    fn an_empty_cluster_is_dealt_out_and_dealt_out_anew() {
        let servers: Vec<_> = (1..=4).map(|id| server(id, id, 1)).collect();
        let mut table = PgTable::empty();
        assert_eq!(deal(&table, &[], 3), vec![]);
        let dealt = deal(&table, &servers[..3], 3);
        assert_eq!(dealt.len(), usize::from(PG_COUNT));
        for (pg, members) in dealt {
            assert_eq!(ranked(pg, &members, &servers), members);
            table.members[usize::from(pg.0)] = members;
        }
        assert_eq!(deal(&table, &servers[..3], 3), vec![]);
        assert!(!deal(&table, &servers, 3).is_empty());
    }
}
