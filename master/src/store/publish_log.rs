//! Family `PublishLog`: what every edge follows.

use atoll_proto::Seq;
use atoll_proto::publish::{PublishEntry, PublishEvent};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, decode, u64_at};

/// Bytes of entries in one answer, about; the heads of messages are bounded.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How many entries are kept; an edge that is further behind takes a snapshot.
pub(crate) const ENTRIES_MAX: u64 = 100_000;

fn key(seq: Seq) -> Vec<u8> {
    Family::PublishLog.key(&[&seq.0.to_be_bytes()])
}

/// The latest entry; 0 when there is none.
pub(crate) fn last(read: &impl Read) -> Result<Seq, StoreError> {
    counters::get(read, Counter::PublishSeq).map(Seq)
}

/// The latest entry that is no longer kept; 0 when all are.
pub(crate) fn floor(read: &impl Read) -> Result<Seq, StoreError> {
    counters::get(read, Counter::PublishFloor).map(Seq)
}

/// Appends an entry. Its seq is the log index, or one more than the last when one log entry
/// publishes several times.
pub(crate) fn append(
    tx: &mut Transaction<'_>,
    index: u64,
    at_ms: u64,
    event: impl FnOnce(Seq) -> PublishEvent,
) -> Result<Seq, StoreError> {
    let seq = Seq(index.max(last(tx)?.0 + 1));
    let entry = PublishEntry { seq, at_ms, event: event(seq) };
    tx.put_value(key(seq), &entry);
    counters::set(tx, Counter::PublishSeq, seq.0);
    if counters::add(tx, Counter::PublishEntries, 1)? > ENTRIES_MAX {
        drop_oldest(tx)?;
    }
    Ok(seq)
}

fn drop_oldest(tx: &mut Transaction<'_>) -> Result<(), StoreError> {
    let (from, to) = Family::PublishLog.prefix(&[]);
    let mut oldest = None;
    tx.scan(&from, &to, Order::Ascending, &mut |key, _| {
        oldest = Some(u64_at(key, 1)?);
        Ok(false)
    })?;
    if let Some(seq) = oldest {
        tx.delete(key(Seq(seq)));
        counters::set(tx, Counter::PublishFloor, seq);
        counters::add(tx, Counter::PublishEntries, -1)?;
    }
    Ok(())
}

/// Drops all entries: everybody begins with a snapshot of this seq.
pub(crate) fn begin_at(tx: &mut Transaction<'_>, seq: Seq) -> Result<(), StoreError> {
    let (from, to) = Family::PublishLog.prefix(&[]);
    let mut seqs = Vec::new();
    tx.scan(&from, &to, Order::Ascending, &mut |key, _| {
        seqs.push(u64_at(key, 1)?);
        Ok(true)
    })?;
    for seq in seqs {
        tx.delete(key(Seq(seq)));
    }
    counters::set(tx, Counter::PublishSeq, seq.0);
    counters::set(tx, Counter::PublishFloor, seq.0);
    counters::set(tx, Counter::PublishEntries, 0);
    Ok(())
}

/// Up to `limit` entries after `after`, in order and of bounded size together but at least one,
/// and whether they are the last.
pub(crate) fn after(
    read: &impl Read,
    after: Seq,
    limit: usize,
) -> Result<(Vec<PublishEntry>, bool), StoreError> {
    let (_, to) = Family::PublishLog.prefix(&[]);
    let Some(first) = after.0.checked_add(1) else { return Ok((Vec::new(), true)) };
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut end = true;
    read.scan(&key(Seq(first)), &to, Order::Ascending, &mut |key, value| {
        bytes += value.len();
        if found.len() == limit || (bytes > ANSWER_BYTES_MAX && !found.is_empty()) {
            end = false;
            return Ok(false);
        }
        found.push(decode(key, value)?);
        Ok(true)
    })?;
    Ok((found, end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn entries_round_trip_with_growing_seqs(
            indexes in proptest::collection::vec(1u64..50, 1..20), limit in 1usize..8,
        ) {
            let store = TestStore::new();
            let mut indexes = indexes;
            indexes.sort_unstable();
            let mut tx = Transaction::new(&store.rocks);
            let mut seqs = Vec::new();
            for index in &indexes {
                let event = |_| PublishEvent::SiteRemoved("a".parse().unwrap());
                seqs.push(append(&mut tx, *index, 7, event).unwrap());
            }
            tx.commit().unwrap();
            prop_assert!(seqs.is_sorted_by(|a, b| a < b));
            prop_assert!(seqs.iter().zip(&indexes).all(|(seq, index)| seq.0 >= *index));
            let mut at = Seq(0);
            let mut seen = Vec::new();
            loop {
                let (page, end) = after(&store.rocks, at, limit).unwrap();
                seen.extend(page.iter().map(|entry| entry.seq));
                if end { break; }
                at = *seen.last().unwrap();
            }
            prop_assert_eq!(&seen, &seqs);
            prop_assert_eq!(last(&store.rocks).unwrap(), *seqs.last().unwrap());
            prop_assert_eq!(after(&store.rocks, Seq(u64::MAX), 5).unwrap().0.len(), 0);
        }
    }

    #[test]
    fn the_oldest_go_past_the_retention() {
        let store = TestStore::new();
        let mut tx = Transaction::new(&store.rocks);
        let event = |_| PublishEvent::SiteRemoved("a".parse().unwrap());
        for index in 1..=5 {
            append(&mut tx, index, 0, event).unwrap();
        }
        counters::set(&mut tx, Counter::PublishEntries, ENTRIES_MAX);
        append(&mut tx, 6, 0, event).unwrap();
        assert_eq!(floor(&tx).unwrap(), Seq(1));
        assert_eq!(after(&tx, Seq(0), 10).unwrap().0[0].seq, Seq(2));
        assert_eq!(counters::get(&tx, Counter::PublishEntries).unwrap(), ENTRIES_MAX);
    }
}
