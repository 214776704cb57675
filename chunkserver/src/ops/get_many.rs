//! GetMany: several whole chunks in one answer, as many as fit. A chunk that is corrupt counts as
//! not here: the caller finds another replica for it.

use std::collections::HashSet;
use std::time::Duration;

use atoll_net::Answer;
use atoll_proto::chunk::{ChunkResponse, GetMany};
use atoll_proto::{ChunkId, WireResult, limits};
use bytes::Bytes;

use super::{MANY_MAX, check_count, get::read_verified};
use crate::node::{Node, to_wire};
use crate::store::{ChunkStore, StoreError};

pub(super) async fn get_many(node: &Node, many: GetMany) -> WireResult<Answer<ChunkResponse>> {
    check_count("chunks", many.ids.len(), MANY_MAX)?;
    let erased = node.erased.before_serving().await;
    let read = node.at_the_disk("get_many", move |store| {
        read_many(store, &many.ids, &erased, limits::BODY_BYTES_MAX)
    });
    let Many { lens, complete, body, corrupt } = read.await?.map_err(to_wire)?;
    node.upkeep.lack(corrupt, Duration::ZERO);
    Ok(Answer::with_body(ChunkResponse::Many { lens, complete }, body))
}

#[derive(Debug, Default)]
struct Many {
    lens: Vec<Option<u32>>,
    complete: bool,
    body: Vec<Bytes>,
    /// To be repaired.
    corrupt: Vec<ChunkId>,
}

/// Reads chunks in order until the next would not fit into `room` bytes; those that are erased are
/// not here. Blocks.
fn read_many(
    store: &dyn ChunkStore,
    ids: &[ChunkId],
    erased: &HashSet<ChunkId>,
    room: usize,
) -> Result<Many, StoreError> {
    let mut many = Many { complete: true, ..Many::default() };
    let mut room = room;
    for id in ids {
        if erased.contains(id) {
            many.lens.push(None);
            continue;
        }
        let here = store.len(id)?;
        if here.is_some_and(|len| len as usize > room) {
            many.complete = false;
            break;
        }
        match read_verified(store, id) {
            Ok(Some(bytes)) => {
                room = room.saturating_sub(bytes.len());
                many.lens.push(Some(u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
                many.body.push(bytes);
            }
            Ok(None) => many.lens.push(None),
            Err(StoreError::Corrupt { .. }) => {
                many.lens.push(None);
                many.corrupt.push(*id);
            }
            Err(error) => return Err(error),
        }
    }
    many.lens.resize(ids.len(), None);
    Ok(many)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;

    use super::*;
    use crate::store::{NewChunk, memory::MemoryStore};

    #[test]
    fn an_answer_is_cut_where_the_next_chunk_does_not_fit() {
        let store = MemoryStore::default();
        let chunks: Vec<NewChunk> = (0..3u8)
            .map(|n| {
                let bytes = Bytes::from(vec![n; 10]);
                NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 }
            })
            .collect();
        store.put_batch(&chunks).unwrap();
        store.damage(&chunks[1].id, Bytes::from_static(b"wrong"));
        let ids = [chunks[0].id, ChunkId([9; 32]), chunks[1].id, chunks[2].id];

        let none = HashSet::new();
        let all = read_many(&store, &ids, &none, 20).unwrap();
        assert_eq!(all.lens, [Some(10), None, None, Some(10)]);
        assert!(all.complete);
        assert_eq!(all.corrupt, [chunks[1].id]);

        let cut = read_many(&store, &ids, &none, 19).unwrap();
        assert_eq!(cut.lens, [Some(10), None, None, None]);
        assert!(!cut.complete);
    }
}
