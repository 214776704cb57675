//! Audit: start a recount of all references, or see how it goes; and what the state machine does
//! with what it found.

use atoll_proto::master::{MasterResponse, ObjectKind};

use crate::operation::{Apply, Fix, Now, Outcome, Seen};
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::meta::{self, Audited};
use crate::store::{Transaction, objects};

/// Most corrections in one log entry.
pub(crate) const FIXES_MAX: usize = 1024;

pub(crate) fn audit(master: &Master, start: bool) -> MasterResponse {
    if start {
        master.audit.ask();
    }
    MasterResponse::Audit(Box::new(master.audit.view()))
}

/// Corrects the counts of objects that are still as they were counted. A chunk that was not in the
/// table is known as bytes from now on; a page or list is admitted afterwards.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    now: Now,
    index: u64,
    fixes: &[Fix],
    complete: Option<u64>,
) -> Apply<Outcome> {
    for fix in fixes {
        let object = objects::get(tx, &fix.id)?;
        let seen = object.map(|object| Seen {
            refs: object.refs,
            zero_since: object.zero_since.map(|since| since.index),
        });
        if seen != fix.seen || seen.map_or(0, |seen| seen.refs) == fix.refs {
            continue;
        }
        tracing::warn!(
            chunk = %fix.id,
            before = seen.map(|seen| seen.refs),
            refs = fix.refs,
            counted_at = index,
            "corrected a count of references"
        );
        objects::set_refs(tx, now, &fix.id, fix.refs, fix.len, ObjectKind::Data)?;
    }
    if let Some(miscounts) = complete {
        meta::set_audited(tx, Audited { index, at_ms: now.at_ms() });
        let left = counters::get(tx, Counter::Miscounts)?.saturating_sub(miscounts);
        counters::set(tx, Counter::Miscounts, left);
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::InodeId;
    use atoll_proto::namespace::NamespaceOp;

    use super::*;
    use crate::operation::Operation;
    use crate::ops::tests::{Machine, commit, data};

    impl Machine {
        /// A correction of this chunk as it is now.
        fn fix(&self, id: &atoll_proto::ChunkId, refs: u64) -> Fix {
            let object = objects::get(&self.store.rocks, id).unwrap();
            let seen = object.as_ref().map(|object| Seen {
                refs: object.refs,
                zero_since: object.zero_since.map(|since| since.index),
            });
            Fix { id: *id, seen, refs, len: 1 }
        }

        fn fix_refs(&mut self, fixes: &[Fix], complete: Option<u64>) {
            let operation = Operation::FixRefs { index: 1, fixes: fixes.to_vec(), complete };
            self.apply(&[operation]).remove(0).unwrap();
        }
    }

    #[test]
    fn a_correction_applies_only_to_what_was_counted() {
        let mut machine = Machine::new();
        let (a, b) = (data("a"), data("b"));
        let file = machine.create(InodeId::ROOT, "f");
        machine.namespace_with(commit(file, &[a], None), &[a]).unwrap();
        let raise = machine.fix(&a.id, 3);
        let create = machine.fix(&b.id, 2);
        machine.fix_refs(&[raise, create], None);
        assert_eq!(machine.refs(&a.id), Some((3, false)));
        assert_eq!(machine.refs(&b.id), Some((2, false)));
        // Proposed again after a change of leader, or from an older count: void.
        machine.fix_refs(&[raise, create], None);
        assert_eq!(machine.refs(&a.id), Some((3, false)));
        let lower = machine.fix(&a.id, 1);
        let other = machine.create(InodeId::ROOT, "g");
        machine.namespace(commit(other, &[a], None)).unwrap();
        machine.fix_refs(&[lower], None);
        assert_eq!(machine.refs(&a.id), Some((4, false)), "it changed since it was counted");
        // Down to nothing: it waits for collection like any other.
        let zero = machine.fix(&b.id, 0);
        machine.fix_refs(&[zero], None);
        assert_eq!(machine.refs(&b.id), Some((0, true)));
    }

    #[test]
    fn a_complete_recount_settles_the_miscounts_it_knew_of() {
        let mut machine = Machine::new();
        let a = data("a");
        let file = machine.create(InodeId::ROOT, "f");
        machine.namespace_with(commit(file, &[a], None), &[a]).unwrap();
        machine.fix_refs(&[machine.fix(&a.id, 0)], None);
        let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "f".into() };
        machine.namespace(unlink).unwrap();
        let miscounts = || counters::get(&machine.store.rocks, Counter::Miscounts).unwrap();
        assert_eq!(miscounts(), 1);
        assert!(crate::ops::upkeep::held(&machine.store.rocks).unwrap().is_some());
        machine.fix_refs(&[], Some(1));
        assert!(crate::ops::upkeep::held(&machine.store.rocks).unwrap().is_none());
        assert_eq!(meta::audited(&machine.store.rocks).unwrap().unwrap().index, 1);
    }
}
