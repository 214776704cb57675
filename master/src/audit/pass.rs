//! One recount: every reference there is at one moment, against what the object table says.
//!
//! Works on a checkpoint of the state, so that the moment does not move. What refers to a chunk:
//! files of the namespace (each distinct chunk once), deploys (their root), and admitted pages and
//! lists (their children once), which are read from the chunkservers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use atoll_proto::ChunkId;
use atoll_proto::error::WireResult;
use atoll_proto::master::ObjectKind;
use atoll_proto::publish::Deploy;
use atoll_proto::{Code, WireError};
use bytes::Bytes;

use super::tally::{Counted, Sums, Tally};
use crate::operation::{Child, Fix, Seen};
use crate::ops::admit;
use crate::ops::change::store_failed;
use crate::ops::namespace::content;
use crate::server::Master;
use crate::store::counters::{self, Counter};
use crate::store::inodes::{Body, Inode};
use crate::store::objects::{self, Object};
use crate::store::rocks::Rocks;
use crate::store::{Family, Order, Read, StoreError, decode, meta};

/// Pages read at a time, so that memory stays bounded.
const READ_AT_ONCE: usize = 64;
/// Differences that one pass remembers; what is beyond is found by the next.
const DIFFERENCES_MAX: usize = 100_000;

/// What a pass found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Log index of the moment.
    pub(super) index: u64,
    /// References given up that had not been counted, at that moment.
    pub(super) miscounts: u64,
    /// Objects compared.
    pub(super) objects: u64,
    /// Pages and lists read.
    pub(super) pages: u64,
    /// Those that could not be read: what they refer to is not counted.
    pub(super) unreadable: u64,
    /// Counts that are too low.
    pub(super) low: Vec<Fix>,
    /// Counts that are too high.
    pub(super) high: BTreeMap<ChunkId, Fix>,
    /// Chunks that something refers to as a page or list but that are not admitted as one.
    pub(super) unadmitted: Vec<(ChunkId, ObjectKind)>,
    /// There were more differences than are remembered.
    pub(super) more: bool,
}

/// The directory of a pass, removed with the value.
struct Room(PathBuf);

impl Room {
    fn new(path: PathBuf) -> std::io::Result<Room> {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir(&path)?;
        Ok(Room(path))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "cannot remove the files of a recount; they only take space");
        }
    }
}

/// Counts everything once.
pub(super) async fn run(master: &Master) -> WireResult<Found> {
    master.consensus.read().await?;
    master.disk.check_room()?;
    let state = master.consensus.state();
    let path = master.settings.data.join(super::DIRECTORY);
    let (room, copy, mut tally, mut found) = blocking(move || {
        let room = Room::new(path).map_err(io)?;
        state.checkpoint(&room.0.join("db"))?;
        let copy = Arc::new(Rocks::open_read_only(&room.0.join("db"))?);
        let mut tally = Tally::new(&room.0).map_err(io)?;
        count_files(&*copy, &mut tally)?;
        count_deploys(&*copy, &mut tally)?;
        let found = Found {
            index: meta::applied(&*copy)?.map_or(0, |log_id| log_id.index),
            miscounts: counters::get(&*copy, Counter::Miscounts)?,
            ..Found::default()
        };
        Ok((room, copy, tally, found))
    })
    .await?;

    let mut next = Some(ChunkId([0; 32]));
    while let Some(first) = next {
        if !master.consensus.leads() || master.shutdown.is_triggered() {
            let message = "the recount stopped: this master no longer leads";
            return Err(WireError::new(Code::NotLeader, message));
        }
        let source = copy.clone();
        let (pages, after) = blocking(move || pages_from(&*source, &first)).await?;
        next = after;
        let ids: Vec<ChunkId> = pages.iter().map(|(id, _)| *id).collect();
        let bytes = master.read_pages(&ids).await;
        let read;
        (tally, read) = blocking(move || {
            let read = count_pages(&pages, &bytes, &mut tally)?;
            Ok((tally, read))
        })
        .await?;
        found.pages += read.len() as u64;
        if read.len() < ids.len() {
            found.unreadable += still_admitted(master, &ids, &read)?;
        }
    }
    blocking(move || {
        let sums = tally.finish().map_err(io)?;
        compare(&*copy, &sums, &mut found)?;
        drop((copy, room));
        Ok(found)
    })
    .await
}

/// How many of the pages that were not read are admitted even now. One that was collected since
/// the copy was made counts for nothing: what it referred to was given up with it.
fn still_admitted(master: &Master, ids: &[ChunkId], read: &HashSet<ChunkId>) -> WireResult<u64> {
    let state = master.consensus.state();
    let mut count = 0;
    for id in ids.iter().filter(|id| !read.contains(*id)) {
        let object = objects::get(&*state, id).map_err(store_failed)?;
        count += u64::from(object.is_some_and(|object| object.kind != ObjectKind::Data));
    }
    Ok(count)
}

fn io(error: std::io::Error) -> StoreError {
    StoreError::io("keep the files of a recount", &error)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> WireResult<T> {
    atoll_net::task::spawn_blocking("audit", work)
        .await
        .map_err(|error| WireError::internal(error.to_string()))?
        .map_err(store_failed)
}

/// What the files of the namespace refer to.
fn count_files(read: &impl Read, tally: &mut Tally) -> Result<(), StoreError> {
    let (from, to) = Family::Inode.prefix(&[]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let inode: Inode = decode(key, value)?;
        if let Body::File(held) = &inode.body {
            let (kind, chunks) = content::chunks(held);
            let distinct: BTreeMap<ChunkId, u32> = chunks.into_iter().collect();
            for (id, len) in distinct {
                tally.add(&Child { id, len, kind }).map_err(io)?;
            }
        }
        Ok(true)
    })
}

/// What the deploys of all sites refer to.
fn count_deploys(read: &impl Read, tally: &mut Tally) -> Result<(), StoreError> {
    let (from, to) = Family::Deploy.prefix(&[]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let deploy: Deploy = decode(key, value)?;
        tally.add(&Child { id: deploy.id, len: 0, kind: ObjectKind::Page }).map_err(io)?;
        Ok(true)
    })
}

/// Admitted pages, with what each is.
type Pages = Vec<(ChunkId, ObjectKind)>;

/// Some pages and lists of the object table from an id on, and where to go on.
fn pages_from(read: &impl Read, first: &ChunkId) -> Result<(Pages, Option<ChunkId>), StoreError> {
    let (mut pages, mut next) = (Vec::new(), None);
    objects::from(read, first, &mut |id, object| {
        if pages.len() >= READ_AT_ONCE {
            next = Some(id);
            return false;
        }
        if object.kind != ObjectKind::Data {
            pages.push((id, object.kind));
        }
        true
    })?;
    Ok((pages, next))
}

/// Counts the children of the pages whose bytes are there. Returns which pages that are.
fn count_pages(
    pages: &Pages,
    bytes: &HashMap<ChunkId, Bytes>,
    tally: &mut Tally,
) -> Result<HashSet<ChunkId>, StoreError> {
    let mut read = HashSet::new();
    for (id, kind) in pages {
        let Some(bytes) = bytes.get(id) else { continue };
        match admit::children(*id, *kind, bytes) {
            Ok(children) => {
                read.insert(*id);
                children.iter().try_for_each(|child| tally.add(child)).map_err(io)?;
            }
            Err(error) => tracing::error!(chunk = %id, %error, "an admitted page makes no sense"),
        }
    }
    Ok(read)
}

/// Compares the sums with the object table, both in the order of ids.
fn compare(read: &impl Read, sums: &Sums, found: &mut Found) -> Result<(), StoreError> {
    let mut parts = sums.parts().peekable();
    while let Some((part, first)) = parts.next() {
        let end = parts.peek().map(|(_, first)| *first);
        let mut counted = sums.part(part).map_err(io)?.into_iter().peekable();
        objects::from(read, &first, &mut |id, object| {
            if end.is_some_and(|end| id >= end) {
                return false;
            }
            found.objects += 1;
            while let Some(unknown) = counted.next_if(|counted| counted.child.id < id) {
                found.unknown(&unknown);
            }
            let sum = counted.next_if(|counted| counted.child.id == id);
            found.known(id, &object, sum.as_ref());
            true
        })?;
        for unknown in counted {
            found.unknown(&unknown);
        }
    }
    Ok(())
}

impl Found {
    /// Something refers to a chunk that is not in the object table.
    fn unknown(&mut self, counted: &Counted) {
        let Child { id, len, kind } = counted.child;
        self.unadmitted(id, kind);
        self.low(Fix { id, seen: None, refs: counted.refs, len });
    }

    fn known(&mut self, id: ChunkId, object: &Object, counted: Option<&Counted>) {
        let refs = counted.map_or(0, |counted| counted.refs);
        if let Some(counted) = counted
            && object.kind == ObjectKind::Data
        {
            self.unadmitted(id, counted.child.kind);
        }
        let zero_since = object.zero_since.map(|since| since.index);
        let seen = Some(Seen { refs: object.refs, zero_since });
        let fix = Fix { id, seen, refs, len: object.len };
        if object.refs < refs {
            self.low(fix);
        } else if object.refs > refs {
            self.more |= self.high.len() >= DIFFERENCES_MAX;
            if !self.more {
                self.high.insert(id, fix);
            }
        }
    }

    fn low(&mut self, fix: Fix) {
        if self.low.len() < DIFFERENCES_MAX {
            self.low.push(fix);
        } else {
            self.more = true;
        }
    }

    fn unadmitted(&mut self, id: ChunkId, kind: ObjectKind) {
        if kind != ObjectKind::Data && self.unadmitted.len() < DIFFERENCES_MAX {
            self.unadmitted.push((id, kind));
        }
    }
}
