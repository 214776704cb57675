//! Erase: bytes that were taken down. And lifting that.
//!
//! The client has looked at everything that refers to the chunks, and shown it to a person; what
//! began to refer to them since wins: then nothing is erased. Who carries it out follows the list of
//! erased chunks ([`crate::ops::erased`]); edges are told by the publish log.

use atoll_proto::erase::{Doomed, Erasure};
use atoll_proto::master::ObjectKind;
use atoll_proto::publish::{PublishEvent, Published};
use atoll_proto::{ChunkId, Code, Seq, SiteName, WireError, limits};

use super::log;
use crate::operation::{Apply, Now};
use crate::store::{Transaction, erased, objects};

pub(super) fn erase(
    tx: &mut Transaction<'_>,
    now: Now,
    site: SiteName,
    chunks: &[Doomed],
    withheld: &[ChunkId],
) -> Apply<Published> {
    super::site(tx, &site)?;
    check_count(chunks.len() + withheld.len())?;
    let mut new = 0;
    for Doomed { id, refs } in chunks {
        check_doomed(tx, id, *refs)?;
        new += u64::from(erased::get(tx, id)?.is_none());
    }
    for id in withheld {
        if objects::get(tx, id)?.is_some_and(|object| object.kind != ObjectKind::List) {
            let message = format!("chunk {id} is no list: only lists are withheld");
            return Err(WireError::invalid(message).into());
        }
        new += u64::from(erased::get(tx, id)?.is_none());
    }
    if erased::count(tx)? + new > limits::ERASED_MAX {
        let most = limits::ERASED_MAX;
        let message = format!("a cluster can remember {most} erased chunks, and has no room left");
        return Err(WireError::new(Code::Limit, message).into());
    }
    let seq = log(tx, now, |_| PublishEvent::Erased { site })?;
    for doomed in chunks {
        objects::erase(tx, now, seq, &doomed.id, Erasure::Erased)?;
    }
    for id in withheld {
        objects::erase(tx, now, seq, id, Erasure::Withheld)?;
    }
    Ok(Published { seq, deploy: None, previous: None })
}

pub(super) fn unerase(
    tx: &mut Transaction<'_>,
    now: Now,
    site: SiteName,
    chunks: &[ChunkId],
) -> Apply<Published> {
    super::site(tx, &site)?;
    check_count(chunks.len())?;
    let seq: Seq = log(tx, now, |_| PublishEvent::Erased { site })?;
    for id in chunks {
        objects::lift(tx, seq, id)?;
    }
    Ok(Published { seq, deploy: None, previous: None })
}

fn check_count(count: usize) -> Result<(), WireError> {
    if count == 0 {
        return Err(WireError::invalid("no chunk is named"));
    }
    if count > limits::ERASE_CHUNKS_MAX {
        let most = limits::ERASE_CHUNKS_MAX;
        let message = format!("{count} chunks in one request; send at most {most}");
        return Err(WireError::new(Code::Limit, message));
    }
    Ok(())
}

/// Whether a chunk may be erased by who knows of so many references to it.
fn check_doomed(tx: &Transaction<'_>, id: &ChunkId, refs: Option<u64>) -> Apply<()> {
    let object = objects::get(tx, id)?;
    if object.as_ref().is_some_and(|object| object.kind != ObjectKind::Data) {
        let message =
            format!("chunk {id} is also a part of a manifest or of a list: it cannot be erased");
        return Err(WireError::invalid(message).into());
    }
    // As it is told to who asks.
    let object = if erased::is_absent(tx, id)? { None } else { object };
    let is = object.map_or(0, |object| object.refs);
    match refs {
        Some(refs) if refs != is => {
            let message = format!(
                "chunk {id} is referred to {is} times, not {refs}: something changed in the \
                 meantime; look again"
            );
            Err(WireError::new(Code::Conflict, message).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::master::Changed;
    use atoll_proto::namespace::NamespaceOp;
    use atoll_proto::publish::SiteOp;
    use atoll_proto::{InodeId, PgId};

    use super::*;
    use crate::operation::Covered;
    use crate::ops::tests::{Machine, commit, data};
    use crate::store::{deltas, group_states};

    fn blog() -> SiteName {
        "blog".parse().unwrap()
    }

    impl Machine {
        fn with_blog() -> Machine {
            let mut machine = Machine::new();
            machine.site(SiteOp::Create { site: blog(), domains: vec![] }).unwrap();
            machine
        }

        fn erase(&mut self, chunk: Covered, refs: Option<u64>) -> Result<Published, WireError> {
            let chunks = vec![Doomed { id: chunk.id, refs }];
            self.site(SiteOp::Erase { site: blog(), chunks, withheld: vec![] })
        }

        fn unerase(&mut self, chunk: Covered) {
            self.site(SiteOp::Unerase { site: blog(), chunks: vec![chunk.id] }).unwrap();
        }

        fn file(&mut self, name: &str, chunk: Covered) {
            let file = self.create(InodeId::ROOT, name);
            self.namespace_with(commit(file, &[chunk], None), &[chunk]).unwrap();
        }

        /// Whether the chunkservers keep the chunk, by what they are told and compared with.
        fn is_kept(&self, chunk: Covered) -> bool {
            let store = &self.store.rocks;
            let mut last = false;
            deltas::after(store, 0, &mut |delta| {
                last = if delta.id == chunk.id { delta.live } else { last };
                true
            })
            .unwrap();
            let pg: PgId = chunk.id.pg();
            let bucket = atoll_proto::tree::bucket_of(&chunk.id);
            let ids = objects::bucket_ids(store, pg, bucket).unwrap();
            assert_eq!(ids.contains(&chunk.id), last);
            let chunks = group_states::get(store, pg).unwrap().chunks;
            assert_eq!(chunks, u64::from(last));
            last
        }
    }

    #[test]
    fn an_erased_chunk_is_kept_by_nobody_and_may_not_come_back() {
        let (mut machine, a) = (Machine::with_blog(), data("a"));
        machine.file("one", a);
        assert!(machine.is_kept(a));
        let conflict = machine.erase(a, Some(2)).unwrap_err();
        assert_eq!(conflict.code, Code::Conflict, "{conflict}");
        assert!(machine.is_kept(a));
        machine.erase(a, Some(1)).unwrap();
        assert!(!machine.is_kept(a));
        assert_eq!(machine.refs(&a.id), Some((1, false)));
        // Again, as when not all had confirmed.
        machine.erase(a, Some(1)).unwrap();
        let file = machine.create(InodeId::ROOT, "two");
        let refused = machine.namespace_with(commit(file, &[a], None), &[a]).unwrap_err();
        assert_eq!(refused.code, Code::Erased, "{refused}");
        // What referred to it goes, and so does the object.
        let unlink = NamespaceOp::Unlink { parent: InodeId::ROOT, name: "one".into() };
        machine.namespace(unlink).unwrap();
        assert_eq!(machine.refs(&a.id), Some((0, true)));
        let object = objects::get(&machine.store.rocks, &a.id).unwrap().unwrap();
        let mut tx = Transaction::new(&machine.store.rocks);
        assert!(object.zero_since.is_some());
        objects::collect(&mut tx, Now { index: 999, at_ns: 0 }, &a.id).unwrap();
        tx.commit().unwrap();
        assert!(!machine.is_kept(a));
        let refused = machine.namespace_with(commit(file, &[a], None), &[a]).unwrap_err();
        assert_eq!(refused.code, Code::Erased, "{refused}");
    }

    #[test]
    fn a_lifted_chunk_comes_back_with_its_upload_only() {
        for still_referred_to in [true, false] {
            let (mut machine, a) = (Machine::with_blog(), data("a"));
            if still_referred_to {
                machine.file("one", a);
            }
            machine.erase(a, None).unwrap();
            machine.unerase(a);
            assert!(!machine.is_kept(a));
            let file = machine.create(InodeId::ROOT, "two");
            let change = crate::operation::LoggedChange::Namespace {
                op: commit(file, &[a], None),
                covered: vec![],
            };
            assert_eq!(machine.change(change).unwrap(), Changed::Missing { ids: vec![a.id] });
            machine.namespace_with(commit(file, &[a], None), &[a]).unwrap();
            assert!(machine.is_kept(a));
            assert_eq!(machine.refs(&a.id), Some((1 + u64::from(still_referred_to), false)));
            // And can be erased anew.
            machine.erase(a, None).unwrap();
            assert!(!machine.is_kept(a));
        }
    }

    #[test]
    fn only_bytes_of_files_are_erased() {
        let mut machine = Machine::with_blog();
        let page = machine.page("root");
        let chunks = vec![Doomed { id: page, refs: None }];
        let op = SiteOp::Erase { site: blog(), chunks, withheld: vec![] };
        assert_eq!(machine.site(op).unwrap_err().code, Code::Invalid);
        let op = SiteOp::Erase { site: blog(), chunks: vec![], withheld: vec![] };
        assert_eq!(machine.site(op).unwrap_err().code, Code::Invalid);
    }
}
