//! Removes aliases whose time is over: by a log entry, with the leader's time.
//!
//! When aliases expire is read once, and from then on learned from the publish log: what a look
//! costs grows with what was published since the last one, not with the aliases there are. Once an
//! hour all of it is read anew, so that nothing learned wrongly stays for long.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use atoll_proto::publish::{Alias, PublishEvent};
use atoll_proto::{AliasName, Seq, SiteName};
use tokio::time::Instant;

use crate::operation::Operation;
use crate::raft::TASK_DEADLINE;
use crate::server::{Master, now_ms};
use crate::store::{Read, StoreError, aliases, publish_log};

/// How often the next expiry is looked for while nothing is published.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How often it is looked for at most, however much is published.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// How long what was learned is built upon.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// Entries of the log that are read at once.
const ENTRIES: usize = 512;

pub(crate) async fn run(master: Arc<Master>) {
    let mut applied = master.consensus.applied();
    let (mut expiries, mut since) = (Expiries::default(), Instant::now());
    loop {
        if since.elapsed() >= FORGET_EVERY {
            (expiries, since) = (Expiries::default(), Instant::now());
        }
        let (seen, leads) = (applied.borrow().publish_seq, master.consensus.leads());
        let pause = if leads { look(&master, &mut expiries).await } else { LOOK_EVERY };
        let wait = async {
            tokio::time::sleep(pause.min(LOOK_AT_MOST_EVERY)).await;
            tokio::select! {
                // Gone with the consensus: this task is about to be stopped.
                published = applied.wait_for(|applied| applied.publish_seq > seen) => {
                    published.is_ok()
                }
                known = master.consensus.leadership_changed(leads) => known,
                () = tokio::time::sleep(pause.saturating_sub(LOOK_AT_MOST_EVERY)) => true,
            }
        };
        let goes_on = tokio::select! {
            goes_on = wait => goes_on,
            () = master.shutdown.wait() => false,
        };
        if !goes_on {
            return;
        }
    }
}

/// Removes what has expired; says how long until there is more to do.
async fn look(master: &Master, expiries: &mut Expiries) -> Duration {
    if let Err(error) = expiries.catch_up(&*master.consensus.state()) {
        tracing::error!(%error, "cannot look for aliases that have expired");
        *expiries = Expiries::default();
        return LOOK_EVERY;
    }
    let Some(at_ms) = expiries.next_ms() else { return LOOK_EVERY };
    let left = Duration::from_millis(at_ms.saturating_sub(now_ms()));
    if !left.is_zero() {
        return left.min(LOOK_EVERY);
    }
    let deadline = Instant::now() + TASK_DEADLINE;
    match master.consensus.propose(&Operation::ExpireAliases, deadline).await {
        Ok(_) => {
            let checked = expiries.check_removed(&*master.consensus.state());
            if !matches!(checked, Ok(true)) {
                tracing::warn!(?checked, "when aliases expire was remembered wrongly");
                *expiries = Expiries::default();
            }
        }
        Err(error) => tracing::warn!(%error, "cannot remove aliases that have expired yet"),
    }
    LOOK_AT_MOST_EVERY
}

/// An alias of a site.
type Name = (SiteName, AliasName);

/// When aliases expire, as of an entry of the publish log.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expiries {
    /// `None`: nothing was read yet.
    upto: Option<Seq>,
    of: HashMap<Name, u64>,
    by_time: BTreeSet<(u64, Name)>,
}

impl Expiries {
    /// The time of the first.
    fn next_ms(&self) -> Option<u64> {
        self.by_time.first().map(|(at_ms, _)| *at_ms)
    }

    /// Whether anything is gone after those that had expired were removed, which may be some of
    /// very many. If nothing is, then what is remembered is not there: it would be tried for ever.
    fn check_removed(&mut self, read: &impl Read) -> Result<bool, StoreError> {
        let (first, count) = (self.by_time.first().cloned(), self.of.len());
        self.catch_up(read)?;
        Ok(self.by_time.first() != first.as_ref() || self.of.len() < count)
    }

    /// Learns what was published since; everything the first time, and when the log does not reach
    /// back so far or is another one.
    fn catch_up(&mut self, read: &impl Read) -> Result<(), StoreError> {
        loop {
            let Some(from) = self.upto else { return self.read_all(read) };
            let (entries, end) = publish_log::after(read, from, ENTRIES)?;
            // Looked at only now: entries may be dropped from the log while it is read.
            let (floor, last) = (publish_log::floor(read)?, publish_log::last(read)?);
            if !(floor..=last).contains(&from) {
                return self.read_all(read);
            }
            for entry in entries {
                self.upto = Some(entry.seq);
                self.apply(entry.event);
            }
            if end {
                return Ok(());
            }
        }
    }

    /// The end of the log is read before the aliases: entries that are applied again change nothing.
    fn read_all(&mut self, read: &impl Read) -> Result<(), StoreError> {
        let last = publish_log::last(read)?;
        *self = Self { upto: Some(last), ..Self::default() };
        aliases::each(read, &mut |record| {
            let Alias { site, alias, expires_ms, .. } = record.alias;
            self.set((site, alias), expires_ms);
        })
    }

    fn apply(&mut self, event: PublishEvent) {
        match event {
            PublishEvent::AliasSet(Alias { site, alias, expires_ms, .. }) => {
                self.set((site, alias), expires_ms);
            }
            PublishEvent::AliasRemoved { site, alias } => self.set((site, alias), None),
            PublishEvent::SiteRemoved(site) => {
                self.of.retain(|(own, _), _| *own != site);
                self.by_time.retain(|(_, (own, _))| *own != site);
            }
            PublishEvent::SiteSet(_)
            | PublishEvent::Invalidate { .. }
            | PublishEvent::Erased { .. }
            | PublishEvent::DeployRemoved { .. } => {}
        }
    }

    fn set(&mut self, name: Name, at_ms: Option<u64>) {
        let before = match at_ms {
            Some(at_ms) => self.of.insert(name.clone(), at_ms),
            None => self.of.remove(&name),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before, name.clone()));
        }
        if let Some(at_ms) = at_ms {
            self.by_time.insert((at_ms, name));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use proptest::prelude::*;

    use super::*;
    use crate::store::Transaction;
    use crate::store::aliases::AliasRecord;
    use crate::store::testing::TestStore;
    use crate::store::{Order, Visit};

    /// What happens between two looks.
    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, u8, Option<u64>),
        Remove(u8, u8),
        RemoveSite(u8),
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..3u8, 0..3u8, proptest::option::of(0..9u64)).prop_map(|(s, a, at)| Step::Set(s, a, at)),
            1 => (0..3u8, 0..3u8).prop_map(|(s, a)| Step::Remove(s, a)),
            1 => (0..3u8).prop_map(Step::RemoveSite),
            2 => Just(Step::Look),
        ]
    }

    fn name(site: u8, alias: u8) -> Name {
        (format!("site-{site}").parse().unwrap(), format!("pr-{alias}").parse().unwrap())
    }

    fn take(tx: &mut Transaction<'_>, index: u64, step: &Step) {
        let mut removed = Vec::new();
        let event = match step {
            Step::Set(site, alias, expires_ms) => {
                let (site, alias) = name(*site, *alias);
                let (deploy, earlier, expires_ms) = (ChunkId([7; 32]), vec![], *expires_ms);
                let (seq, at_ms) = (Seq(index), 0);
                let alias = Alias { site, alias, deploy, seq, at_ms, earlier, expires_ms };
                aliases::put(tx, &AliasRecord { alias: alias.clone(), history: vec![deploy; 9] });
                PublishEvent::AliasSet(alias)
            }
            Step::Remove(site, alias) => {
                let (site, alias) = name(*site, *alias);
                removed.push((site.clone(), alias.clone()));
                PublishEvent::AliasRemoved { site, alias }
            }
            Step::RemoveSite(site) => {
                removed.extend((0..3).map(|alias| name(*site, alias)));
                PublishEvent::SiteRemoved(name(*site, 0).0)
            }
            Step::Look => return,
        };
        for (site, alias) in removed {
            aliases::remove(tx, &site, &alias);
        }
        publish_log::append(tx, index, 0, |_| event).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_the_log_says_comes_to_what_the_aliases_say(
            steps in proptest::collection::vec(step(), 1..40),
            restored_at in proptest::option::of(0..40usize),
        ) {
            let store = TestStore::new();
            let mut expiries = Expiries::default();
            let mut index = 0;
            for (number, step) in steps.iter().enumerate() {
                let mut tx = Transaction::new(&store.rocks);
                index += 1;
                take(&mut tx, index, step);
                if restored_at == Some(number) {
                    // What was logged is lost: nobody can tell what changed.
                    index += 1000;
                    publish_log::begin_at(&mut tx, Seq(index)).unwrap();
                }
                tx.commit().unwrap();
                if matches!(step, Step::Look) {
                    expiries.catch_up(&store.rocks).unwrap();
                    let mut anew = Expiries::default();
                    anew.catch_up(&store.rocks).unwrap();
                    prop_assert_eq!(&expiries, &anew);
                    let all = aliases::all(&store.rocks, None).unwrap();
                    let next = all.iter().filter_map(|record| record.alias.expires_ms).min();
                    prop_assert_eq!(expiries.next_ms(), next);
                }
            }
        }
    }

    #[test]
    fn a_look_reads_no_alias_once_it_knows() {
        let store = TestStore::new();
        let mut expiries = Expiries::default();
        let mut tx = Transaction::new(&store.rocks);
        take(&mut tx, 1, &Step::Set(0, 0, Some(5)));
        tx.commit().unwrap();
        expiries.catch_up(&store.rocks).unwrap();
        // Behind the log's back: whoever read it would notice.
        let mut tx = Transaction::new(&store.rocks);
        let (site, alias) = name(0, 0);
        aliases::remove(&mut tx, &site, &alias);
        take(&mut tx, 2, &Step::Set(1, 1, Some(3)));
        tx.commit().unwrap();
        expiries.catch_up(&store.rocks).unwrap();
        assert_eq!((expiries.next_ms(), expiries.of.len()), (Some(3), 2));
    }

    #[test]
    fn what_is_still_there_after_it_was_removed_was_remembered_wrongly() {
        let store = TestStore::new();
        let mut expiries = Expiries::default();
        let change = |steps: &[Step], first: u64| {
            let mut tx = Transaction::new(&store.rocks);
            for (index, step) in (first..).zip(steps) {
                take(&mut tx, index, step);
            }
            tx.commit().unwrap();
        };
        change(&[Step::Set(0, 0, Some(5)), Step::Set(1, 1, Some(5)), Step::Set(2, 2, Some(7))], 1);
        expiries.catch_up(&store.rocks).unwrap();
        change(&[Step::Remove(2, 2)], 4);
        assert!(expiries.check_removed(&store.rocks).unwrap(), "one of several");
        change(&[Step::Remove(0, 0)], 5);
        assert!(expiries.check_removed(&store.rocks).unwrap(), "another one of the same time");
        // Behind the log's back.
        let mut tx = Transaction::new(&store.rocks);
        let (site, alias) = name(1, 1);
        aliases::remove(&mut tx, &site, &alias);
        tx.commit().unwrap();
        assert!(!expiries.check_removed(&store.rocks).unwrap());
        expiries = Expiries::default();
        expiries.catch_up(&store.rocks).unwrap();
        assert_eq!(expiries.next_ms(), None);
    }

    /// A state that another one takes the place of while the log is read.
    struct Changing<'s> {
        store: &'s TestStore,
        change: std::cell::Cell<Option<Seq>>,
    }

    impl Read for Changing<'_> {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.rocks.get(key)
        }

        fn scan(
            &self,
            from: &[u8],
            to: &[u8],
            order: Order,
            visit: &mut Visit<'_>,
        ) -> Result<(), StoreError> {
            if let Some(seq) = self.change.take() {
                let mut tx = Transaction::new(&self.store.rocks);
                publish_log::begin_at(&mut tx, seq).unwrap();
                tx.commit().unwrap();
            }
            self.store.rocks.scan(from, to, order, visit)
        }
    }

    #[test]
    fn entries_that_are_dropped_while_the_log_is_read_are_noticed() {
        let store = TestStore::new();
        let mut expiries = Expiries::default();
        let change = |index, step: &Step| {
            let mut tx = Transaction::new(&store.rocks);
            take(&mut tx, index, step);
            tx.commit().unwrap();
        };
        change(1, &Step::Set(0, 0, Some(5)));
        expiries.catch_up(&store.rocks).unwrap();
        change(2, &Step::Set(1, 1, Some(3)));
        let changing = Changing { store: &store, change: Some(Seq(9)).into() };
        expiries.catch_up(&changing).unwrap();
        assert_eq!((expiries.next_ms(), expiries.upto), (Some(3), Some(Seq(9))));
    }
}
