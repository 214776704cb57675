//! Collect: objects that nothing has referred to for long are no longer kept.
//!
//! Proposed by the collection task of the leader ([`crate::tasks::collect`]). What happened to an
//! object since the leader looked wins: it stays if anything refers to it, or did in between. A
//! client that was told that a chunk is known, and commits after it was collected, is told that it
//! is missing and uploads it again.

use crate::operation::{Apply, Collected, Now, Outcome};
use crate::store::{Transaction, objects};
use atoll_proto::{Code, WireError};

/// Most objects in one log entry.
pub(crate) const OBJECTS_MAX: usize = 1024;

pub(crate) fn apply(tx: &mut Transaction<'_>, now: Now, objects: &[Collected]) -> Apply<Outcome> {
    // Frozen after the leader looked.
    if let Some(reason) = super::upkeep::held(tx)? {
        let message = format!("nothing is collected at the moment: {reason}");
        return Err(WireError::new(Code::Unavailable, message).into());
    }
    for doomed in objects {
        let Some(object) = objects::get(tx, &doomed.id)? else { continue };
        let since = object.zero_since.map(|since| since.index);
        let unchanged =
            object.refs == 0 && object.kind == doomed.kind && since == Some(doomed.zero_since);
        if !unchanged {
            continue;
        }
        for child in &doomed.children {
            objects::drop_ref(tx, now, child)?;
        }
        objects::collect(tx, now, &doomed.id)?;
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::master::{Changed, ObjectKind, UpkeepOp};
    use atoll_proto::namespace::NamespaceOp;
    use atoll_proto::{ChunkId, InodeId};

    use super::*;
    use crate::operation::{Admission, AdmittedPage, Child, Covered, LoggedChange, Operation};
    use crate::ops::tests::{Machine, commit, data};
    use crate::store::counters::{self, Counter};
    use crate::store::deltas;

    impl Machine {
        /// What the leader would propose for these chunks now.
        fn seen(&self, ids: &[ChunkId], children: &[ChunkId]) -> Operation {
            let objects = ids.iter().map(|id| {
                let object = objects::get(&self.store.rocks, id).unwrap().unwrap();
                Collected {
                    id: *id,
                    kind: object.kind,
                    zero_since: object.zero_since.map_or(0, |since| since.index),
                    children: children.to_vec(),
                }
            });
            Operation::Collect { objects: objects.collect() }
        }

        /// A file with this content, made and removed: its chunk is known and unused.
        fn unused(&mut self, chunk: Covered) {
            let file = self.create(InodeId::ROOT, "gone");
            self.namespace_with(commit(file, &[chunk], None), &[chunk]).unwrap();
            let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "gone".into() };
            self.namespace(unlink).unwrap();
            assert_eq!(self.refs(&chunk.id), Some((0, true)));
        }

        fn collect(&mut self, operation: Operation) {
            self.apply(&[operation]).remove(0).unwrap();
        }
    }

    #[test]
    fn said_to_exist_then_collected_then_committed_ends_in_missing() {
        let mut machine = Machine::new();
        let a = data("a");
        machine.unused(a);
        let file = machine.create(InodeId::ROOT, "f");
        let change = || LoggedChange::Namespace { op: commit(file, &[a], None), covered: vec![] };
        // The client was told that it is known; the collection comes first.
        machine.collect(machine.seen(&[a.id], &[]));
        assert_eq!(machine.refs(&a.id), None);
        let reply = machine.change(change()).unwrap();
        assert_eq!(reply, Changed::Missing { ids: vec![a.id] });
        // Uploaded again, it has receipts.
        machine.namespace_with(commit(file, &[a], None), &[a]).unwrap();
        assert_eq!(machine.refs(&a.id), Some((1, false)));
        // The feed says: live, collected, live again.
        let mut feed = Vec::new();
        deltas::after(&machine.store.rocks, 0, &mut |delta| {
            feed.push(delta.live);
            true
        })
        .unwrap();
        assert_eq!(feed, [true, false, true]);
    }

    #[test]
    fn a_commit_before_the_collection_wins_even_when_it_is_undone_in_between() {
        let mut machine = Machine::new();
        let a = data("a");
        machine.unused(a);
        let collect = machine.seen(&[a.id], &[]);
        let file = machine.create(InodeId::ROOT, "f");
        machine.namespace(commit(file, &[a], None)).unwrap();
        machine.collect(collect.clone());
        assert_eq!(machine.refs(&a.id), Some((1, false)));
        // Unused again, but since later than the leader saw.
        let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "f".into() };
        machine.namespace(unlink).unwrap();
        machine.collect(collect);
        assert_eq!(machine.refs(&a.id), Some((0, true)));
        machine.collect(machine.seen(&[a.id], &[]));
        assert_eq!(machine.refs(&a.id), None);
    }

    #[test]
    fn commit_and_collection_in_one_entry_follow_their_order() {
        for commit_first in [true, false] {
            let mut machine = Machine::new();
            let a = data("a");
            machine.unused(a);
            let file = machine.create(InodeId::ROOT, "f");
            let collect = machine.seen(&[a.id], &[]);
            let change = Operation::Numbered {
                session: atoll_proto::SessionId(1),
                number: 900,
                acked_below: 0,
                change: LoggedChange::Namespace { op: commit(file, &[a], None), covered: vec![] },
            };
            let operations = if commit_first { [change, collect] } else { [collect, change] };
            let replies = machine.apply(&operations);
            assert!(replies.iter().all(Result::is_ok), "{replies:?}");
            let expected = commit_first.then_some((1, false));
            assert_eq!(machine.refs(&a.id), expected);
        }
    }

    #[test]
    fn a_collected_page_gives_back_its_children_and_a_publish_finds_it_missing() {
        let mut machine = Machine::new();
        let one = machine.page("one");
        let children = [data("one data").id, data("shared").id];
        let collect = machine.seen(&[one], &children);
        machine.collect(collect.clone());
        assert_eq!(machine.refs(&one), None);
        assert_eq!(machine.refs(&children[0]), Some((0, true)));
        assert_eq!(machine.refs(&children[1]), Some((0, true)));
        // Proposed twice, as after a change of leader: nothing is given back twice.
        machine.collect(collect);
        assert_eq!(counters::get(&machine.store.rocks, Counter::Miscounts).unwrap(), 0);
        let reply = machine.try_publish(one, None).unwrap();
        assert_eq!(reply, Changed::Missing { ids: vec![one] });
        // The pages are admitted again, with new cover for what is gone only.
        machine.page("one");
        machine.publish(one, None).unwrap();
        assert_eq!(machine.refs(&children[0]), Some((1, false)));
        // Published: the leader's old view of it counts for nothing.
        machine.collect(machine.seen(&[one], &children));
        assert_eq!(machine.refs(&one), Some((1, false)));
    }

    #[test]
    fn bytes_that_became_a_page_meanwhile_are_not_collected_as_bytes() {
        let mut machine = Machine::new();
        let (page, child) = (data("page"), data("child"));
        machine.unused(page);
        let collect = machine.seen(&[page.id], &[]);
        let admission = Admission {
            pages: vec![AdmittedPage {
                id: page.id,
                len: page.len,
                kind: ObjectKind::Page,
                children: vec![Child { id: child.id, len: child.len, kind: ObjectKind::Data }],
            }],
            covered: vec![child],
        };
        machine.change(LoggedChange::Admit(admission)).unwrap();
        machine.collect(collect);
        assert_eq!(machine.refs(&page.id), Some((0, true)));
        assert_eq!(machine.refs(&child.id), Some((1, false)));
    }

    #[test]
    fn an_admission_over_what_was_collected_names_it() {
        let mut machine = Machine::new();
        let shared = data("shared");
        machine.unused(shared);
        machine.collect(machine.seen(&[shared.id], &[]));
        let page = data("page");
        let admission = Admission {
            pages: vec![AdmittedPage {
                id: page.id,
                len: page.len,
                kind: ObjectKind::Page,
                children: vec![Child { id: shared.id, len: shared.len, kind: ObjectKind::Data }],
            }],
            covered: vec![page],
        };
        let reply = machine.change(LoggedChange::Admit(admission)).unwrap();
        assert_eq!(reply, Changed::Missing { ids: vec![shared.id] });
        assert_eq!(machine.refs(&page.id), None);
    }

    #[test]
    fn nothing_is_collected_while_frozen_or_miscounted() {
        let mut machine = Machine::new();
        let a = data("a");
        machine.unused(a);
        let freeze = UpkeepOp::Freeze { reason: "a drill".into() };
        let frozen = machine.change(LoggedChange::Upkeep(freeze)).unwrap();
        assert_eq!(frozen, Changed::Upkeep { scrub: 0 });
        let orders = crate::ops::upkeep::orders(&machine.store.rocks).unwrap();
        assert!(orders.frozen && orders.release == 0);
        let collect = machine.seen(&[a.id], &[]);
        let error = machine.apply(std::slice::from_ref(&collect)).remove(0).unwrap_err();
        assert!(error.message.contains("a drill"), "{error}");
        assert_eq!(machine.refs(&a.id), Some((0, true)));
        machine.change(LoggedChange::Upkeep(UpkeepOp::Release)).unwrap();
        let scrub = machine.change(LoggedChange::Upkeep(UpkeepOp::Scrub)).unwrap();
        assert_eq!(scrub, Changed::Upkeep { scrub: 1 });
        let orders = crate::ops::upkeep::orders(&machine.store.rocks).unwrap();
        assert!(!orders.frozen && orders.release == 1 && orders.scrub == 1);

        let mut tx = Transaction::new(&machine.store.rocks);
        counters::set(&mut tx, Counter::Miscounts, 1);
        tx.commit().unwrap();
        assert!(machine.apply(std::slice::from_ref(&collect)).remove(0).is_err());
        let mut tx = Transaction::new(&machine.store.rocks);
        counters::set(&mut tx, Counter::Miscounts, 0);
        tx.commit().unwrap();
        machine.collect(collect);
        assert_eq!(machine.refs(&a.id), None);
    }
}
