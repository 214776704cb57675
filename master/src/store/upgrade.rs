//! Turning a state that an earlier version wrote into one of this format.
//!
//! Format 1 had no deltas, no digests and no times in the object table. What is missing follows
//! from the table. It is worked out in small batches, and the new format is written down last: after
//! a crash on the way everything is done again. Two masters that do this at different log indexes
//! differ in the times alone, on which no change of the state depends. Format 2 had no settings of
//! sites ([`sites`]). Format 3 knew nothing of erased chunks: there were none. Format 4 had no extended
//! attributes, pipes, sockets and devices: a state without them is one of format 5 as it is.

mod sites;

use atoll_proto::master::ObjectKind;
use atoll_proto::tree::{SetHash, bucket_of};
use atoll_proto::{ChunkId, PgId};
use serde::Deserialize;

use super::buckets::Bucket;
use super::counters::{self, Counter};
use super::group_states::GroupState;
use super::objects::{self, Object, Since};
use super::rocks::{Batch, Rocks};
use super::{
    FORMAT_VERSION, FORMAT_VERSION_MIN, Family, Order, POOL, Read, StoreError, Transaction, decode,
    meta,
};

/// Writes in one batch, about.
const BATCH: usize = 4096;

/// An object as format 1 has it.
#[derive(Deserialize)]
struct ObjectV1 {
    refs: u64,
    len: u32,
    kind: ObjectKind,
    zero_since: Option<u64>,
}

/// Brings a state to this format; does nothing to one that has it, or that holds no cluster yet.
///
/// # Errors
/// When it has a format that this build does not know.
pub(crate) fn upgrade(rocks: &Rocks) -> Result<(), StoreError> {
    let Some(record) = meta::cluster(rocks)? else { return Ok(()) };
    if record.format == FORMAT_VERSION {
        return Ok(());
    }
    if !(FORMAT_VERSION_MIN..FORMAT_VERSION).contains(&record.format) {
        let reason = format!(
            "it has format {}, this program reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}: use \
             the version that wrote it",
            record.format
        );
        return Err(StoreError::io("use this state", &reason));
    }
    tracing::info!(from = record.format, to = FORMAT_VERSION, "upgrading the state");
    if record.format < 2 {
        derive_from_objects(rocks)?;
    }
    let mut tx = Transaction::new(rocks);
    if record.format < 3 {
        sites::upgrade(&mut tx)?;
    }
    meta::set_cluster(&mut tx, &meta::ClusterRecord { format: FORMAT_VERSION, ..record });
    tx.commit_synced()
}

/// What format 1 lacks: all that follows from the object table.
fn derive_from_objects(rocks: &Rocks) -> Result<(), StoreError> {
    let index = meta::applied(rocks)?.map_or(0, |log_id| log_id.index);
    let at_ms = meta::clock_ns(rocks)? / 1_000_000;
    let mut writer = Writer { rocks, batch: Batch::default(), writes: 0 };
    for family in [Family::Delta, Family::Bucket, Family::GroupState, Family::Unreferenced] {
        let (from, to) = family.prefix(&[]);
        writer.batch.delete_range(&from, &to);
    }
    writer.flush()?;
    let (mut idle, mut open) = (0, Open::default());
    let (from, to) = Family::Object.prefix(&[]);
    let view = rocks.view();
    view.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let id = objects::id_of(key)?;
        let object = object(key, value, at_ms)?;
        writer.put(key, &atoll_proto::encode(&object))?;
        if let Some(since) = object.zero_since {
            idle += 1;
            let key = Family::Unreferenced.key(&[&since.at_ms.to_be_bytes(), id.as_bytes()]);
            writer.put(&key, &[])?;
        }
        open.add(&id, index, &mut writer)?;
        Ok(true)
    })?;
    open.close_group(index, &mut writer)?;
    writer.flush()?;
    let mut tx = Transaction::new(rocks);
    counters::set(&mut tx, Counter::Unreferenced, idle);
    counters::set(&mut tx, Counter::DeltaEntries, 0);
    counters::set(&mut tx, Counter::DeltaFloor, index);
    counters::set(&mut tx, Counter::DeltaLast, index);
    tx.commit()
}

/// An object of either format: an interrupted upgrade leaves both.
fn object(key: &[u8], value: &[u8], at_ms: u64) -> Result<Object, StoreError> {
    if let Ok(object) = atoll_proto::decode(value) {
        return Ok(object);
    }
    let ObjectV1 { refs, len, kind, zero_since } = decode(key, value)?;
    let zero_since = zero_since.map(|index| Since { index, at_ms });
    Ok(Object { refs, len, kind, zero_since })
}

/// Writes in batches.
struct Writer<'a> {
    rocks: &'a Rocks,
    batch: Batch,
    writes: usize,
}

impl Writer<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.batch.put(key, value);
        self.writes += 1;
        if self.writes >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.writes = 0;
        self.rocks.write(std::mem::take(&mut self.batch), false)
    }
}

/// The bucket and the group that a scan in order of ids is in.
#[derive(Default)]
struct Open {
    bucket: Option<((PgId, u8), SetHash, u32)>,
    group: Option<(PgId, u64)>,
}

impl Open {
    fn add(&mut self, id: &ChunkId, index: u64, writer: &mut Writer<'_>) -> Result<(), StoreError> {
        if self.group.is_none_or(|(pg, _)| pg != id.pg()) {
            self.close_group(index, writer)?;
            self.group = Some((id.pg(), 0));
        }
        let place = (id.pg(), bucket_of(id));
        if self.bucket.is_none_or(|(open, _, _)| open != place) {
            self.close_bucket(writer)?;
            self.bucket = Some((place, SetHash::default(), 0));
        }
        if let (Some((_, hash, count)), Some((_, chunks))) = (&mut self.bucket, &mut self.group) {
            hash.insert(id);
            *count += 1;
            *chunks += 1;
        }
        Ok(())
    }

    fn close_bucket(&mut self, writer: &mut Writer<'_>) -> Result<(), StoreError> {
        let Some(((pg, bucket), hash, count)) = self.bucket.take() else { return Ok(()) };
        let key = Family::Bucket.key(&[&[POOL], &pg.0.to_be_bytes(), &[bucket]]);
        writer.put(&key, &atoll_proto::encode(&Bucket { digest: hash.to_bytes(), count }))
    }

    fn close_group(&mut self, index: u64, writer: &mut Writer<'_>) -> Result<(), StoreError> {
        self.close_bucket(writer)?;
        let Some((pg, chunks)) = self.group.take() else { return Ok(()) };
        let key = Family::GroupState.key(&[&[POOL], &pg.0.to_be_bytes()]);
        writer.put(&key, &atoll_proto::encode(&GroupState { index, chunks }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::{ByteName, ClusterId, Content, InodeId, receipt::ReceiptKey};
    use serde::Serialize;

    use super::super::testing::TestStore;
    use super::*;
    use crate::operation::Now;

    #[derive(Serialize)]
    struct OldObject {
        refs: u64,
        len: u32,
        kind: ObjectKind,
        zero_since: Option<u64>,
    }

    fn record(format: u32) -> meta::ClusterRecord {
        meta::ClusterRecord {
            cluster: ClusterId([1; 16]),
            format,
            receipt_key: ReceiptKey([2; 32]),
            chunk_bytes: 1 << 20,
        }
    }

    /// The families that follow from the object table, but for the deltas.
    fn derived(store: &TestStore) -> Vec<(Vec<u8>, Vec<u8>)> {
        let families = [Family::Object as u8, Family::Bucket as u8, Family::Unreferenced as u8];
        store.dump().into_iter().filter(|(key, _)| families.contains(&key[0])).collect()
    }

    #[test]
    fn a_state_of_format_1_becomes_as_if_it_had_always_been_this_one() {
        let (old, new) = (TestStore::new(), TestStore::new());
        let now = Now { index: 7, at_ns: 5_000_000 };
        let (mut before, mut after) = (Transaction::new(&old.rocks), Transaction::new(&new.rocks));
        meta::set_cluster(&mut before, &record(1));
        meta::set_clock_ns(&mut before, now.at_ns);
        for n in 0..500u32 {
            let id = ChunkId::of(&n.to_be_bytes());
            let refs = u64::from(n % 3);
            let zero_since = (refs == 0).then_some(7);
            let object = OldObject { refs, len: n, kind: ObjectKind::Data, zero_since };
            before.put_value(objects::key(&id), &object);
            objects::set_kind(&mut after, now, &id, n, ObjectKind::Data).unwrap();
            for _ in 0..refs {
                objects::add_ref(&mut after, now, &id, n, ObjectKind::Data).unwrap();
            }
        }
        before.commit().unwrap();
        after.commit().unwrap();
        upgrade(&old.rocks).unwrap();
        assert_eq!(derived(&old), derived(&new));
        let count = counters::get(&old.rocks, Counter::Unreferenced).unwrap();
        assert_eq!(count, counters::get(&new.rocks, Counter::Unreferenced).unwrap());
        assert_eq!(meta::cluster(&old.rocks).unwrap(), Some(record(FORMAT_VERSION)));
        // Interrupted before the end, it is done again.
        let dump = old.dump();
        let mut tx = Transaction::new(&old.rocks);
        meta::set_cluster(&mut tx, &record(1));
        tx.commit().unwrap();
        upgrade(&old.rocks).unwrap();
        assert_eq!(old.dump(), dump);
    }

    #[test]
    fn a_state_of_format_3_is_as_it_was() {
        use crate::store::{aliases, erased, publish_log, sites as of_sites};
        use atoll_proto::publish::{PublishEvent, Site};
        use atoll_proto::site::SiteSettings;
        let store = TestStore::new();
        let mut tx = Transaction::new(&store.rocks);
        meta::set_cluster(&mut tx, &record(3));
        let name: atoll_proto::SiteName = "blog".parse().unwrap();
        let settings = SiteSettings { spa: true, ..SiteSettings::default() };
        let site = Site { name: name.clone(), domains: vec![], created_ms: 5, settings };
        of_sites::put(&mut tx, &site).unwrap();
        publish_log::append(&mut tx, 7, 5, |_| PublishEvent::SiteSet(site.clone())).unwrap();
        tx.commit().unwrap();
        let last = publish_log::last(&store.rocks).unwrap();
        upgrade(&store.rocks).unwrap();
        assert_eq!(meta::cluster(&store.rocks).unwrap(), Some(record(FORMAT_VERSION)));
        assert_eq!(of_sites::get(&store.rocks, &name).unwrap(), Some(site));
        assert_eq!(publish_log::last(&store.rocks).unwrap(), last);
        assert!(aliases::all(&store.rocks, None).unwrap().is_empty());
        assert_eq!(erased::count(&store.rocks).unwrap(), 0);
        assert_eq!(erased::began(&store.rocks).unwrap(), 0);
    }

    /// An inode as formats 1 to 4 have it.
    #[derive(Serialize)]
    struct OldInode {
        mode: u32,
        ids: [u32; 2],
        nlink: u32,
        times_ns: [i64; 3],
        version: u64,
        body: OldBody,
    }

    #[derive(Serialize)]
    enum OldBody {
        File(Content),
        Directory { parent: InodeId },
        Symlink(ByteName),
    }

    #[derive(Serialize)]
    enum OldKind {
        File,
        Directory,
        Symlink,
    }

    #[test]
    fn a_state_of_format_4_is_one_of_format_5_as_it_is() {
        use super::super::{
            dentries::{self, Dentry},
            erased,
            inodes::{self, Body},
        };
        use atoll_proto::Seq;
        use atoll_proto::content::Extent;
        use atoll_proto::erase::Erasure;
        use atoll_proto::namespace::FileKind;
        let store = TestStore::new();
        let mut tx = Transaction::new(&store.rocks);
        meta::set_cluster(&mut tx, &record(4));
        let now = Now { index: 7, at_ns: 5_000_000 };
        let erased_id = ChunkId::of(b"erased");
        objects::add_ref(&mut tx, now, &erased_id, 6, ObjectKind::Data).unwrap();
        objects::erase(&mut tx, now, Seq(now.index), &erased_id, Erasure::Erased).unwrap();
        let content = Content::from_extents(vec![Extent { len: 6, id: Some(erased_id) }]);
        let entries = [
            ("d", OldKind::Directory, OldBody::Directory { parent: InodeId::ROOT }),
            ("f", OldKind::File, OldBody::File(content.clone())),
            ("l", OldKind::Symlink, OldBody::Symlink("f".into())),
        ];
        for (n, (name, kind, body)) in (8_u64..).zip(entries) {
            let (mode, ids, times_ns) = (0o4755, [1, 2], [3, 4, 5]);
            let inode = OldInode { mode, ids, nlink: 1, times_ns, version: n, body };
            tx.put_value(Family::Inode.key(&[&n.to_be_bytes()]), &inode);
            let dentry = (InodeId(n), kind);
            let place = [&InodeId::ROOT.0.to_be_bytes()[..], name.as_bytes()];
            tx.put_value(Family::Dentry.key(&place), &dentry);
        }
        tx.commit().unwrap();
        let mut before = store.dump();
        upgrade(&store.rocks).unwrap();
        assert_eq!(meta::cluster(&store.rocks).unwrap(), Some(record(FORMAT_VERSION)));
        let mut after = store.dump();
        for dump in [&mut before, &mut after] {
            dump.retain(|(key, _)| key[0] != Family::Meta as u8);
        }
        assert_eq!(before, after);
        assert!(erased::is_refused(&store.rocks, &erased_id).unwrap());
        let kinds = [FileKind::Directory, FileKind::File, FileKind::Symlink];
        for ((n, kind), name) in (8_u64..).zip(kinds).zip(["d", "f", "l"]) {
            let found = inodes::get(&store.rocks, InodeId(n)).unwrap().unwrap();
            assert_eq!((found.kind(), found.mode, found.version), (kind, 0o4755, n));
            assert!(!found.has_xattrs());
            let dentry = dentries::get(&store.rocks, InodeId::ROOT, name.as_bytes()).unwrap();
            assert_eq!(dentry, Some(Dentry { inode: InodeId(n), kind }));
        }
        assert_eq!(
            inodes::get(&store.rocks, InodeId(9)).unwrap().unwrap().body,
            Body::File(content)
        );
    }

    #[test]
    fn a_format_of_the_future_is_refused() {
        let store = TestStore::new();
        upgrade(&store.rocks).unwrap();
        let mut tx = Transaction::new(&store.rocks);
        meta::set_cluster(&mut tx, &record(FORMAT_VERSION + 1));
        tx.commit().unwrap();
        let error = upgrade(&store.rocks).unwrap_err().to_string();
        assert!(error.contains("use the version that wrote it"), "{error}");
    }
}
