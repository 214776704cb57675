//! Which lacking chunks to fetch next, and from whom: plain state, `now` is an argument.
//!
//! Chunks of groups with the fewest other readers come first. Each round asks every reader that is
//! up, one after the other, until one has the chunk. A round in which none had it is followed by a
//! pause that doubles; after [`ROUNDS_MAX`] of them the chunk is a *dead letter* and tried rarely,
//! until something happens that may change the outcome. A chunk no reader of which is up waits
//! for one, and that is no round.
//!
//! The queue is bounded. What does not fit is still listed by the store as lacking, and is read
//! from there when there is room ([`Queue::wants_more`]). Dead letters take nobody's room: the oldest
//! are let go for what may be fetched, and come back in the same way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use atoll_proto::ids::PG_COUNT;
use atoll_proto::{ChunkId, NodeId, PgId};

/// Rounds without success after which a chunk is a dead letter.
pub(crate) const ROUNDS_MAX: u32 = 10;
/// How often a dead letter is tried.
pub(crate) const DEAD_RETRY: Duration = Duration::from_secs(600);
/// The longest pause between rounds, in units of the first.
const PAUSE_UNITS_MAX: u32 = 60;
/// Most chunks in the queue.
const CHUNKS_MAX: usize = 200_000;

/// Milliseconds since some moment that does not change.
pub(crate) type Millis = u64;

/// Lacking chunks and how far each is.
#[derive(Debug)]
pub(crate) struct Queue {
    jobs: BTreeMap<ChunkId, Job>,
    /// Chunks that are due and have to be looked at first.
    fresh: VecDeque<ChunkId>,
    /// Chunks that may be fetched now: by urgency, then by group.
    ready: BTreeMap<(usize, PgId), VecDeque<ChunkId>>,
    /// Chunks that wait for a time.
    waiting: BTreeSet<(Millis, ChunkId)>,
    /// For each group the other readers that are up.
    sources: Vec<Vec<NodeId>>,
    dead: usize,
    /// Dead letters that wait, by when they became so.
    letters: BTreeSet<(Millis, ChunkId)>,
    /// Something that may be fetched did not fit.
    overflowed: bool,
    /// The first pause.
    pause: Duration,
    chunks_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    state: State,
    /// Rounds without success.
    rounds: u32,
    /// Who was asked in this round.
    asked: Vec<NodeId>,
    /// Somebody answered in this round.
    answered: bool,
    /// Since when it is a dead letter.
    dead: Option<Millis>,
    /// It became lacking (again) while it was under way.
    again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Ready,
    Waiting(Millis),
    Busy,
}

/// Chunks to be asked of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) source: NodeId,
    pub(crate) ids: Vec<ChunkId>,
}

/// How one chunk of a batch fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is here, or not lacking any more.
    Done,
    /// The source does not have it in good order.
    NotThere,
    /// The source gave no answer.
    Unanswered,
    /// It was not asked for, for want of room: try again at once.
    Again,
    /// It cannot be stored now: try again later.
    Later,
}

impl Queue {
    /// An empty queue; the pause after the first round without success is this.
    pub(crate) fn new(pause: Duration) -> Self {
        Self {
            jobs: BTreeMap::new(),
            fresh: VecDeque::new(),
            ready: BTreeMap::new(),
            waiting: BTreeSet::new(),
            sources: vec![Vec::new(); usize::from(PG_COUNT)],
            dead: 0,
            letters: BTreeSet::new(),
            overflowed: false,
            pause,
            chunks_max: CHUNKS_MAX,
        }
    }

    /// Chunks that are lacking, not to be fetched before `due`. Those already here keep their
    /// place, unless this one is earlier. Returns how many dead letters were let go to make room.
    pub(crate) fn push(&mut self, ids: impl IntoIterator<Item = ChunkId>, due: Millis) -> u64 {
        let mut let_go = 0;
        for id in ids {
            let known = self.jobs.get_mut(&id).map(|job| {
                job.again |= job.state == State::Busy;
                (job.state, job.rounds)
            });
            match known {
                Some((State::Waiting(at), 0)) if due < at => self.wait(id, due),
                Some(_) => {}
                None if !self.make_room(id.pg(), &mut let_go) => {
                    self.overflowed |= self.urgency(id.pg()) > 0;
                }
                None => {
                    let state = State::Waiting(due);
                    let job = Job {
                        state,
                        rounds: 0,
                        asked: Vec::new(),
                        answered: false,
                        dead: None,
                        again: false,
                    };
                    self.jobs.insert(id, job);
                    self.waiting.insert((due, id));
                }
            }
        }
        let_go
    }

    /// The readers other than this node that are up, of every group. Chunks of groups that
    /// gained one are tried at once.
    pub(crate) fn set_sources(&mut self, sources: Vec<Vec<NodeId>>, now: Millis) {
        let before = std::mem::replace(&mut self.sources, sources);
        let urgency: BTreeMap<PgId, usize> =
            (0..PG_COUNT).map(|pg| (PgId(pg), self.urgency(PgId(pg)))).collect();
        for ((_, pg), ids) in std::mem::take(&mut self.ready) {
            self.ready.insert((urgency[&pg], pg), ids);
        }
        let gained = |pg: &PgId| {
            let at = usize::from(pg.0);
            let old = before.get(at).map_or(&[][..], Vec::as_slice);
            self.sources.get(at).is_some_and(|new| new.iter().any(|node| !old.contains(node)))
        };
        let gained: BTreeSet<PgId> = (0..PG_COUNT).map(PgId).filter(gained).collect();
        // Some of their chunks may not have fitted while nobody had them.
        self.overflowed |= !gained.is_empty();
        self.revive(now, |pg| gained.contains(&pg));
        // Whose last source that was not asked has gone will not be taken any more.
        let mut over = Vec::new();
        for ((_, pg), ids) in &self.ready {
            let sources = &self.sources[usize::from(pg.0)];
            let all_asked = |id: &&ChunkId| {
                let asked = self.jobs.get(*id).map_or(&[][..], |job| &job.asked);
                !asked.is_empty() && sources.iter().all(|node| asked.contains(node))
            };
            over.extend(ids.iter().filter(all_asked).copied());
        }
        for id in over {
            if let Some(ids) = self.ready.get_mut(&(self.urgency(id.pg()), id.pg())) {
                ids.retain(|other| *other != id);
            }
            self.end_round(id, now);
        }
        self.ready.retain(|_, ids| !ids.is_empty());
    }

    /// Chunks that failed before, and dead letters, of these groups are tried at once, as if they
    /// were new.
    pub(crate) fn revive(&mut self, now: Millis, groups: impl Fn(PgId) -> bool) {
        let paused = |job: &Job| matches!(job.state, State::Waiting(_)) && job.rounds > 0;
        let ids: Vec<ChunkId> = self
            .jobs
            .iter()
            .filter(|(id, job)| paused(job) && groups(id.pg()))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(job) = self.jobs.get_mut(&id) {
                if let Some(since) = job.dead.take() {
                    self.dead -= 1;
                    self.letters.remove(&(since, id));
                }
                job.rounds = 0;
            }
            self.wait(id, now);
        }
    }

    /// Chunks that are due: whether they are still lacking, and not in this server's own quarantine,
    /// is to be looked at before anybody is asked, and told by [`Queue::looked`].
    pub(crate) fn take_fresh(&mut self, now: Millis, most: usize) -> Vec<ChunkId> {
        self.wake(now);
        let ids: Vec<ChunkId> = self.fresh.drain(..most.min(self.fresh.len())).collect();
        for id in &ids {
            if let Some(job) = self.jobs.get_mut(id) {
                job.state = State::Busy;
            }
        }
        ids
    }

    /// Chunks were looked at: whether each has to be fetched from others.
    pub(crate) fn looked(&mut self, ids: impl IntoIterator<Item = (ChunkId, bool)>) {
        for (id, wanted) in ids {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let again = std::mem::take(&mut job.again);
            if wanted { self.make_ready(id) } else { self.done(id, again) }
        }
    }

    /// What to fetch now: at most `most` chunks of a source that `free` allows. The chunks are
    /// under way until [`Queue::settle`] is told of each.
    pub(crate) fn take(
        &mut self,
        most: usize,
        mut free: impl FnMut(NodeId) -> usize,
    ) -> Option<Batch> {
        let keys: Vec<(usize, PgId)> = self.ready.keys().copied().collect();
        let mut batch: Option<Batch> = None;
        for key in keys {
            if let Some(batch) = &batch
                && (batch.ids.len() >= most || !self.has_source(key.1, batch.source))
            {
                continue;
            }
            let sources = &self.sources[usize::from(key.1.0)];
            if batch.is_none() && sources.iter().all(|node| free(*node) == 0) {
                continue;
            }
            let Some(mut ids) = self.ready.remove(&key) else { continue };
            let mut kept = VecDeque::new();
            while let Some(id) = ids.pop_front() {
                if batch.as_ref().is_some_and(|batch| batch.ids.len() >= most) {
                    kept.push_back(id);
                    break;
                }
                let Some(job) = self.jobs.get_mut(&id) else { continue };
                let candidates = self.sources[usize::from(key.1.0)].iter();
                let candidates = candidates.filter(|node| !job.asked.contains(node));
                let source = match &batch {
                    Some(batch) => candidates.copied().find(|node| *node == batch.source),
                    None => candidates
                        .map(|node| (free(*node), *node))
                        .filter(|(free, _)| *free > 0)
                        .max_by_key(|(free, node)| (*free, std::cmp::Reverse(*node)))
                        .map(|(_, node)| node),
                };
                match source {
                    Some(source) => {
                        job.state = State::Busy;
                        job.asked.push(source);
                        batch.get_or_insert(Batch { source, ids: Vec::new() }).ids.push(id);
                    }
                    None => kept.push_back(id),
                }
            }
            kept.append(&mut ids);
            if !kept.is_empty() {
                self.ready.insert(key, kept);
            }
        }
        batch
    }

    /// How the chunks of a batch fared.
    pub(crate) fn settle(
        &mut self,
        source: NodeId,
        fates: impl IntoIterator<Item = (ChunkId, Fate)>,
        now: Millis,
    ) {
        for (id, fate) in fates {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let again = std::mem::take(&mut job.again);
            match fate {
                Fate::Done => self.done(id, again),
                Fate::NotThere | Fate::Unanswered => {
                    job.answered |= fate == Fate::NotThere;
                    let pg = usize::from(id.pg().0);
                    let left = self.sources[pg].iter().any(|node| !job.asked.contains(node));
                    if left { self.make_ready(id) } else { self.end_round(id, now) }
                }
                Fate::Again | Fate::Later => {
                    job.asked.retain(|node| *node != source);
                    match fate {
                        Fate::Again => self.make_ready(id),
                        _ => self.wait(id, now.saturating_add(millis(self.pause))),
                    }
                }
            }
        }
    }

    /// When something becomes due that was not at the last [`Queue::wake`]; `None` if nothing waits.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Whether chunks did not fit that would now, if need be in place of dead letters. The answer is
    /// given once; the caller pushes what the store lists.
    pub(crate) fn wants_more(&mut self) -> bool {
        let hopeful = self.jobs.len().saturating_sub(self.dead);
        let wants = self.overflowed && hopeful <= self.chunks_max / 2;
        self.overflowed &= !wants;
        wants
    }

    /// All groups, those with the fewest other readers first; those with none, of which nothing can
    /// be fetched, last.
    pub(crate) fn by_urgency(&self) -> Vec<PgId> {
        let mut groups: Vec<PgId> = (0..PG_COUNT).map(PgId).collect();
        groups.sort_by_key(|pg| match self.urgency(*pg) {
            0 => usize::MAX,
            some => some,
        });
        groups
    }

    /// Whether nothing more fits, not even in place of what nobody has.
    pub(crate) fn is_full(&self) -> bool {
        !self.has_room() && self.letters.is_empty()
    }

    /// Whether more fits without letting dead letters go.
    pub(crate) fn has_room(&self) -> bool {
        self.jobs.len() < self.chunks_max || self.without_source().is_some()
    }

    /// The first chunks that may be fetched now, of a group that nobody has.
    fn without_source(&self) -> Option<(usize, PgId)> {
        let (key, _) = self.ready.first_key_value()?;
        (key.0 == 0).then_some(*key)
    }

    /// Makes room for a chunk of a group, if need be in place of one that nobody has: one of a group
    /// without a reader that is up, else the oldest dead letter, which is counted.
    fn make_room(&mut self, pg: PgId, let_go: &mut u64) -> bool {
        if self.jobs.len() < self.chunks_max {
            return true;
        }
        if self.urgency(pg) == 0 {
            return false;
        }
        let Some(key) = self.without_source() else {
            let Some((_, oldest)) = self.letters.first().copied() else { return false };
            self.remove(&oldest);
            *let_go += 1;
            return true;
        };
        let (dropped, empty) = match self.ready.get_mut(&key) {
            Some(ids) => (ids.pop_back(), ids.is_empty()),
            None => (None, true),
        };
        if empty {
            self.ready.remove(&key);
        }
        if let Some(id) = dropped {
            self.remove(&id);
        }
        dropped.is_some()
    }

    /// Dead letters.
    pub(crate) fn dead(&self) -> usize {
        self.dead
    }

    /// Chunks in the queue.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Rounds without success of a chunk, and whether it is a dead letter.
    pub(crate) fn attempts(&self, id: &ChunkId) -> (u32, bool) {
        self.jobs.get(id).map_or((0, false), |job| (job.rounds, job.dead.is_some()))
    }

    /// Whether some chunk that may be fetched now has only one other place to come from.
    pub(crate) fn is_urgent(&self) -> bool {
        self.ready.range((1, PgId(0))..(2, PgId(0))).next().is_some()
    }

    /// It is here, or not lacking any more; unless it became so while it was under way.
    fn done(&mut self, id: ChunkId, again: bool) {
        match self.jobs.get_mut(&id) {
            Some(job) if again => {
                job.asked.clear();
                self.wait(id, 0);
            }
            _ => self.remove(&id),
        }
    }

    fn urgency(&self, pg: PgId) -> usize {
        self.sources.get(usize::from(pg.0)).map_or(0, Vec::len)
    }

    fn has_source(&self, pg: PgId, node: NodeId) -> bool {
        self.sources.get(usize::from(pg.0)).is_some_and(|sources| sources.contains(&node))
    }

    fn end_round(&mut self, id: ChunkId, now: Millis) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.asked.clear();
        // A round in which nobody answered says nothing about the chunk, but much about the net.
        if std::mem::take(&mut job.answered) || job.rounds + 1 < ROUNDS_MAX {
            job.rounds += 1;
        }
        if job.rounds >= ROUNDS_MAX && job.dead.is_none() {
            job.dead = Some(now);
            self.dead += 1;
        }
        let pause = if job.dead.is_some() {
            DEAD_RETRY
        } else {
            let doublings = job.rounds.saturating_sub(1).min(16);
            self.pause * (1u32 << doublings).min(PAUSE_UNITS_MAX)
        };
        self.wait(id, now.saturating_add(millis(pause)));
    }

    /// What has become due waits no longer.
    pub(crate) fn wake(&mut self, now: Millis) {
        while let Some((due, id)) = self.waiting.first().copied().filter(|(due, _)| *due <= now) {
            self.waiting.remove(&(due, id));
            if let Some(job) = self.jobs.get_mut(&id) {
                self.letters.remove(&(job.dead.unwrap_or_default(), id));
                job.state = State::Fresh;
                self.fresh.push_back(id);
            }
        }
    }

    fn make_ready(&mut self, id: ChunkId) {
        let key = (self.urgency(id.pg()), id.pg());
        if let Some(job) = self.jobs.get_mut(&id) {
            job.state = State::Ready;
            self.ready.entry(key).or_default().push_back(id);
        }
    }

    fn wait(&mut self, id: ChunkId, due: Millis) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let State::Waiting(before) = job.state {
            self.waiting.remove(&(before, id));
        }
        job.state = State::Waiting(due);
        self.waiting.insert((due, id));
        self.letters.extend(job.dead.map(|since| (since, id)));
    }

    fn remove(&mut self, id: &ChunkId) {
        if let Some(job) = self.jobs.remove(id) {
            if let Some(since) = job.dead {
                self.dead -= 1;
                self.letters.remove(&(since, *id));
            }
            if let State::Waiting(due) = job.state {
                self.waiting.remove(&(due, *id));
            }
        }
    }
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    fn id(pg: u16, number: u16) -> ChunkId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&(pg << 4).to_be_bytes());
        bytes[2..4].copy_from_slice(&number.to_be_bytes());
        ChunkId(bytes)
    }

    fn sources(of: impl Fn(u16) -> Vec<u64>) -> Vec<Vec<NodeId>> {
        (0..PG_COUNT).map(|pg| of(pg).into_iter().map(NodeId).collect()).collect()
    }

    fn queue(of: impl Fn(u16) -> Vec<u64>) -> Queue {
        let mut queue = Queue::new(PAUSE);
        queue.set_sources(sources(of), 0);
        queue
    }

    /// Everything that is due is lacking indeed.
    fn look(queue: &mut Queue, now: Millis) {
        let ids = queue.take_fresh(now, usize::MAX);
        queue.looked(ids.into_iter().map(|id| (id, true)));
    }

    fn take(queue: &mut Queue, now: Millis) -> Option<(u64, Vec<ChunkId>)> {
        look(queue, now);
        queue.take(100, |_| 1).map(|batch| (batch.source.0, batch.ids))
    }

    fn settle(queue: &mut Queue, source: u64, id: ChunkId, fate: Fate, now: Millis) {
        queue.settle(NodeId(source), [(id, fate)], now);
    }

    #[test]
    fn the_fewest_other_readers_come_first() {
        let mut queue = queue(|pg| if pg == 7 { vec![2] } else { vec![2, 3] });
        queue.push([id(1, 0), id(7, 0), id(9, 0)], 0);
        look(&mut queue, 0);
        assert!(queue.take(1, |_| 0).is_none() && queue.is_urgent());
        let batch = queue.take(1, |_| 1).unwrap();
        assert_eq!(batch.ids, [id(7, 0)]);
        assert!(!queue.is_urgent());
        // When more of their readers go down, others are first.
        queue.set_sources(sources(|pg| if pg == 9 { vec![3] } else { vec![2, 3] }), 0);
        assert_eq!(queue.take(1, |_| 1).unwrap().ids, [id(9, 0)]);
        assert_eq!(queue.by_urgency()[0], PgId(9));
    }

    #[test]
    fn a_batch_is_for_one_source_with_room_and_spans_groups() {
        let mut queue = queue(|pg| if pg == 2 { vec![3] } else { vec![2, 3] });
        queue.push([id(1, 0), id(2, 0), id(3, 0)], 0);
        look(&mut queue, 0);
        let batch = queue.take(100, |node| if node == NodeId(2) { 2 } else { 0 }).unwrap();
        assert_eq!(batch, Batch { source: NodeId(2), ids: vec![id(1, 0), id(3, 0)] });
        assert_eq!(queue.take(100, |_| 0), None);
        assert_eq!(take(&mut queue, 0), Some((3, vec![id(2, 0)])));
        assert_eq!(take(&mut queue, 0), None);
    }

    #[test]
    fn every_reader_is_asked_once_in_a_round() {
        let mut queue = queue(|_| vec![2, 3]);
        queue.push([id(1, 0)], 50);
        assert_eq!(take(&mut queue, 49), None);
        let (first, _) = take(&mut queue, 50).unwrap();
        settle(&mut queue, first, id(1, 0), Fate::NotThere, 50);
        let (second, _) = take(&mut queue, 50).unwrap();
        assert_ne!(first, second);
        settle(&mut queue, second, id(1, 0), Fate::Unanswered, 50);
        assert_eq!(queue.attempts(&id(1, 0)), (1, false));
        assert_eq!(take(&mut queue, 149), None);
        assert_eq!(queue.next_due(), Some(150));
        let (third, _) = take(&mut queue, 150).unwrap();
        settle(&mut queue, third, id(1, 0), Fate::Done, 150);
        assert_eq!((queue.len(), queue.next_due()), (0, None));
    }

    /// Fails until the chunk is a dead letter; returns when that was.
    fn kill(queue: &mut Queue, chunk: ChunkId, fate: Fate, rounds: u32) -> Millis {
        let mut now = 0;
        for _ in 0..rounds {
            now = queue.next_due().unwrap_or(now).max(now);
            let (source, ids) = take(queue, now).unwrap();
            assert_eq!(ids, [chunk]);
            settle(queue, source, chunk, fate, now);
        }
        now
    }

    #[test]
    fn after_many_rounds_it_is_a_dead_letter_until_something_happens() {
        let mut queue = queue(|_| vec![2]);
        queue.push([id(1, 0)], 0);
        let now = kill(&mut queue, id(1, 0), Fate::NotThere, ROUNDS_MAX);
        assert_eq!((queue.dead(), queue.attempts(&id(1, 0))), (1, (ROUNDS_MAX, true)));
        assert!(now > 100 * 100, "the pauses grew: {now} ms");
        assert_eq!(queue.next_due(), Some(now + millis(DEAD_RETRY)));
        queue.push([id(1, 0)], now);
        assert_eq!(take(&mut queue, now), None, "it is no news");
        queue.set_sources(sources(|_| vec![2, 3]), now);
        assert_eq!(queue.dead(), 0);
        let (source, _) = take(&mut queue, now).unwrap();
        settle(&mut queue, source, id(1, 0), Fate::Done, now);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn silence_is_never_the_end_and_no_reader_is_no_round() {
        let mut silent = queue(|_| vec![2]);
        silent.push([id(1, 0)], 0);
        kill(&mut silent, id(1, 0), Fate::Unanswered, 3 * ROUNDS_MAX);
        assert_eq!(silent.dead(), 0);

        let mut alone = queue(|_| Vec::new());
        alone.push([id(1, 0)], 0);
        assert_eq!(take(&mut alone, 1_000_000), None);
        assert_eq!(alone.attempts(&id(1, 0)), (0, false));
        alone.set_sources(sources(|_| vec![2]), 5);
        assert_eq!(take(&mut alone, 5), Some((2, vec![id(1, 0)])));
    }

    #[test]
    fn what_is_not_lacking_any_more_is_asked_of_nobody() {
        let mut alone = queue(|_| Vec::new());
        alone.push([id(1, 0), id(1, 1)], 5);
        assert!(alone.take_fresh(4, 10).is_empty());
        assert_eq!(alone.take_fresh(5, 10), [id(1, 0), id(1, 1)]);
        assert!(alone.take_fresh(5, 10).is_empty());
        alone.looked([(id(1, 0), false), (id(1, 1), true)]);
        assert_eq!(alone.len(), 1);
        alone.set_sources(sources(|_| vec![2]), 5);
        assert_eq!(take(&mut alone, 5), Some((2, vec![id(1, 1)])));
    }

    #[test]
    fn what_had_no_room_is_asked_again_of_the_same() {
        let mut queue = queue(|_| vec![2]);
        queue.push([id(1, 0), id(1, 1)], 0);
        let (source, ids) = take(&mut queue, 0).unwrap();
        queue.settle(NodeId(source), [(ids[0], Fate::Again), (ids[1], Fate::Later)], 0);
        assert_eq!(take(&mut queue, 0), Some((2, vec![ids[0]])));
        assert_eq!(take(&mut queue, 100), Some((2, vec![ids[1]])));
        assert_eq!(queue.attempts(&ids[1]).0, 0);
    }

    #[test]
    fn a_round_ends_when_the_last_source_goes_that_was_not_asked() {
        let chunk = id(1, 1);
        let mut queue = queue(|_| vec![1, 2]);
        queue.push([chunk], 0);
        let (first, _) = take(&mut queue, 0).unwrap();
        settle(&mut queue, first, chunk, Fate::Unanswered, 0);
        // The other one goes before its turn: the first is to be asked again all the same.
        queue.set_sources(sources(|_| vec![first]), 0);
        assert_eq!(take(&mut queue, 0), None);
        let due = queue.next_due().unwrap();
        assert_eq!(take(&mut queue, due), Some((first, vec![chunk])));
    }

    #[test]
    fn what_becomes_lacking_while_it_is_under_way_is_not_forgotten() {
        let chunk = id(1, 1);
        let mut queue = queue(|_| vec![1]);
        queue.push([chunk], 0);
        assert!(take(&mut queue, 0).is_some());
        queue.push([chunk], 0);
        settle(&mut queue, 1, chunk, Fate::Done, 0);
        assert_eq!(take(&mut queue, 0), Some((1, vec![chunk])));
        settle(&mut queue, 1, chunk, Fate::Done, 0);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn what_nobody_has_makes_way_for_what_somebody_has() {
        let of = |pg: u16| if pg == 1 { vec![] } else { vec![7] };
        let mut queue = queue(of);
        queue.chunks_max = 3;
        queue.push((0..3).map(|number| id(1, number)), 0);
        look(&mut queue, 0);
        assert!(!queue.is_full(), "there is room for what can be fetched");
        queue.push((0..5).map(|number| id(2, number)), 0);
        look(&mut queue, 0);
        assert!(queue.is_full() && queue.len() == 3);
        let (source, ids) = take(&mut queue, 0).unwrap();
        assert!(source == 7 && ids.len() == 3 && ids.iter().all(|id| id.pg() == PgId(2)));
        for id in ids {
            settle(&mut queue, 7, id, Fate::Done, 0);
        }
        assert!(queue.wants_more());
        // Somebody is back who may have the others.
        queue.set_sources(sources(|_| vec![7]), 0);
        assert!(queue.wants_more());
        assert_eq!(queue.by_urgency().len(), usize::from(PG_COUNT));
    }

    #[test]
    fn dead_letters_make_way_the_oldest_first() {
        let mut queue = queue(|pg| if pg == 3 { vec![] } else { vec![2] });
        queue.chunks_max = 4;
        assert!(queue.wants_more(), "of the groups that have a reader now");
        let mut now = 0;
        let mut kill_until = |queue: &mut Queue, dead: usize| {
            while queue.dead() < dead {
                let Some((source, ids)) = take(queue, now) else {
                    now = queue.next_due().unwrap();
                    continue;
                };
                queue.settle(NodeId(source), ids.into_iter().map(|id| (id, Fate::NotThere)), now);
            }
            now
        };
        let mut at = 0;
        for (count, number) in [3, 1, 2, 0].into_iter().enumerate() {
            assert_eq!(queue.push([id(1, number)], at), 0);
            at = kill_until(&mut queue, count + 1);
        }
        assert!(!queue.has_room() && !queue.is_full() && queue.len() == 4);
        // Not for what cannot be fetched either.
        assert_eq!(queue.push([id(3, 0)], at), 0);
        assert_eq!((queue.dead(), queue.len()), (4, 4));
        assert_eq!(queue.push([id(2, 0), id(2, 1)], at), 2);
        let dead = [3, 1, 2, 0].map(|number| queue.attempts(&id(1, number)).1);
        assert_eq!(dead, [false, false, true, true], "the oldest are gone");
        assert!(!queue.wants_more(), "all that may be fetched did fit");
        assert_eq!(queue.push([id(2, 2), id(2, 3), id(2, 4)], at), 2);
        assert!(queue.is_full() && queue.dead() == 0 && queue.len() == 4);
        assert!(!queue.wants_more(), "nothing would fit");
        kill_until(&mut queue, 4);
        assert!(queue.wants_more() && !queue.wants_more(), "dead letters do not count");
    }

    #[test]
    fn the_queue_is_bounded_and_asks_for_the_rest() {
        let mut queue = queue(|_| vec![2]);
        queue.chunks_max = 4;
        queue.push((0..6).map(|n| id(1, n)), 0);
        assert_eq!(queue.len(), 4);
        assert!(queue.is_full() && !queue.wants_more());
        look(&mut queue, 0);
        let batch = queue.take(2, |_| 1).unwrap();
        queue.settle(batch.source, batch.ids.into_iter().map(|id| (id, Fate::Done)), 0);
        assert!(queue.wants_more() && !queue.wants_more());
    }

    proptest! {
        #[test]
        fn no_chunk_is_lost_or_counted_twice(
            steps in prop::collection::vec((0..8u8, 0..20u16, 0..500u64), 1..200),
        ) {
            let mut queue = queue(|pg| if pg % 2 == 0 { vec![2, 3] } else { vec![3] });
            let (mut now, mut open, mut busy) = (0, BTreeSet::new(), Vec::<Batch>::new());
            let mut again = BTreeSet::new();
            for (step, number, passed) in steps {
                now += passed;
                let chunk = id(number % 3, number);
                match step {
                    0..=2 => {
                        queue.push([chunk], now + passed);
                        open.insert(chunk);
                        if busy.iter().any(|batch| batch.ids.contains(&chunk)) {
                            again.insert(chunk);
                        }
                    }
                    3 => {
                        for id in queue.take_fresh(now, 4) {
                            let wanted = passed % 5 > 0;
                            queue.looked([(id, wanted)]);
                            if !wanted {
                                open.remove(&id);
                            }
                        }
                        busy.extend(queue.take(3, |_| 1));
                    }
                    4 => queue.revive(now, |_| true),
                    5 => {
                        let up = if number % 2 == 0 { vec![2, 3] } else { vec![3] };
                        queue.set_sources(sources(|_| up.clone()), now);
                    }
                    _ => if let Some(Batch { source, ids }) = busy.pop() {
                        let fates = [Fate::Done, Fate::NotThere, Fate::Unanswered, Fate::Again, Fate::Later];
                        let fate = fates[usize::from(number) % fates.len()];
                        for id in &ids {
                            if !again.remove(id) && fate == Fate::Done {
                                open.remove(id);
                            }
                        }
                        queue.settle(source, ids.into_iter().map(|id| (id, fate)), now);
                    },
                }
                prop_assert_eq!(queue.len(), open.len());
                let ready: usize = queue.ready.values().map(VecDeque::len).sum();
                let under_way: usize = busy.iter().map(|batch| batch.ids.len()).sum();
                let due = ready + queue.fresh.len();
                prop_assert_eq!(due + queue.waiting.len() + under_way, open.len());
                let dead = queue.jobs.values().filter(|job| job.dead.is_some()).count();
                prop_assert_eq!(queue.dead(), dead);
                let letters = queue.jobs.iter().filter_map(|(id, job)| {
                    let waits = matches!(job.state, State::Waiting(_));
                    job.dead.filter(|_| waits).map(|since| (since, *id))
                });
                prop_assert_eq!(&queue.letters, &letters.collect::<BTreeSet<_>>());
            }
        }
    }
}
