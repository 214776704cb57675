//! What was asked of a cluster and what it acknowledged: the measure of every checker.
//!
//! An acknowledged operation fixes what its place holds. One whose outcome is unknown (the power
//! went, the answer did not come) leaves two possibilities: it happened, whole, or it did not. The
//! place then rests until a checker has looked and settled which.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::payload::Payload;

/// What a place holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nothing.
    Absent,
    /// This payload, every byte of it; for a site, the deploy of this generation.
    Holds(Payload),
    /// The first bytes of this payload: what a write through the mount may leave whose fsync was
    /// never answered.
    Begins(Payload, u64),
}

/// How an operation reaches the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// `atoll upload`, `atoll rm`.
    CommandLine,
    /// The client library in this process.
    Client,
    /// The mount: a new file, written, synced, closed.
    Mount,
    /// The mount: a new file, synced, renamed over the old one.
    MountRename,
    /// `atoll deploy`.
    Deploy,
}

/// One operation, as it is kept for a reader of the history.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number, from 0.
    pub number: usize,
    /// A path, or the name of a site.
    pub place: String,
    /// What the place is to hold.
    pub intent: State,
    /// How.
    pub way: Way,
    /// When it was asked for, in milliseconds since the history began.
    pub began_ms: u128,
    /// When its outcome was known.
    pub ended_ms: Option<u128>,
    /// What it came to.
    pub outcome: Outcome,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not known yet.
    Running,
    /// The cluster said that it is done.
    Acknowledged,
    /// It was refused, or the answer did not come: it may have happened or not.
    Unknown(String),
}

/// An operation under way.
#[derive(Debug)]
#[must_use = "its outcome has to be told"]
pub struct Ticket(usize);

#[derive(Debug, Clone)]
struct Place {
    /// One, unless outcomes are open.
    possible: Vec<State>,
    /// Whether the outcome of the last operation is open.
    open: bool,
    /// What a mount was to write, of which a part may have been left, too.
    partly: Option<Payload>,
    /// Whether that mount still runs: it may store later what it could not store in time.
    pending: bool,
    busy: bool,
    /// Number of the last operation.
    last: usize,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    places: BTreeMap<String, Place>,
    acknowledged: u64,
    unknown: u64,
}

/// A history, shared by those who act and those who check.
#[derive(Debug)]
pub struct History {
    inner: Mutex<Inner>,
    began: Instant,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self { inner: Mutex::default(), began: Instant::now() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation begins. `None` while another one is under way at the place, or the outcome of
    /// one is open.
    pub fn begin(
        &self,
        place: &str,
        way: Way,
        decide: impl FnOnce(u64, State) -> Option<State>,
    ) -> Option<(Ticket, State)> {
        let began_ms = self.began.elapsed().as_millis();
        let mut inner = self.inner();
        let number = inner.entries.len();
        let now = match inner.places.get(place) {
            None => State::Absent,
            Some(known) if known.busy || known.open => return None,
            Some(known) => *known.possible.first()?,
        };
        // Numbers of operations are also the generations of what they write: never used twice.
        let intent = decide(number as u64 + 1, now)?;
        let entry = inner.places.entry(place.to_owned()).or_insert(Place {
            possible: vec![State::Absent],
            open: false,
            partly: None,
            pending: false,
            busy: false,
            last: number,
        });
        entry.busy = true;
        entry.last = number;
        inner.entries.push(Entry {
            number,
            place: place.to_owned(),
            intent,
            way,
            began_ms,
            ended_ms: None,
            outcome: Outcome::Running,
        });
        Some((Ticket(number), intent))
    }

    /// The operation was acknowledged: from now on the place must hold what was meant.
    pub fn acknowledged(&self, ticket: Ticket) {
        let now = self.began.elapsed().as_millis();
        let mut inner = self.inner();
        let entry = &mut inner.entries[ticket.0];
        entry.ended_ms = Some(now);
        entry.outcome = Outcome::Acknowledged;
        let (name, intent) = (entry.place.clone(), entry.intent);
        inner.acknowledged += 1;
        if let Some(place) = inner.places.get_mut(&name) {
            place.possible = vec![intent];
            place.busy = false;
        }
    }

    /// Nobody knows what came of it.
    pub fn unknown(&self, ticket: Ticket, why: impl fmt::Display) {
        let now = self.began.elapsed().as_millis();
        let mut inner = self.inner();
        let entry = &mut inner.entries[ticket.0];
        entry.ended_ms = Some(now);
        entry.outcome = Outcome::Unknown(why.to_string());
        let (name, intent, way) = (entry.place.clone(), entry.intent, entry.way);
        inner.unknown += 1;
        if let Some(place) = inner.places.get_mut(&name) {
            place.possible.push(intent);
            place.open = true;
            place.busy = false;
            place.partly = match (way, intent) {
                (Way::Mount, State::Holds(payload)) => Some(payload),
                _ => None,
            };
            place.pending = place.partly.is_some();
        }
    }

    /// The mount's process has ended: what it did not store by now, nobody stores any more.
    pub fn mount_ended(&self) {
        for place in self.inner().places.values_mut() {
            place.pending = false;
        }
    }

    /// What is acknowledged so far, and what is open or was.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.acknowledged, inner.unknown)
    }

    /// How many operations were begun.
    pub fn len(&self) -> usize {
        self.inner().entries.len()
    }

    /// Whether none was begun.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every place that an operation named, and the number of the last one there.
    pub fn places(&self) -> Vec<(String, usize)> {
        self.inner().places.iter().map(|(name, place)| (name.clone(), place.last)).collect()
    }

    /// What a place may hold.
    pub fn possible(&self, place: &str) -> Vec<State> {
        let inner = self.inner();
        inner.places.get(place).map_or(vec![State::Absent], |place| place.possible.clone())
    }

    /// What a place holds, when nothing happens there and nothing is open; with the number of its
    /// last operation.
    pub fn certain(&self, place: &str) -> Option<(State, usize)> {
        let inner = self.inner();
        let known = inner.places.get(place)?;
        match known.possible[..] {
            [state] if !known.busy && !known.open => Some((state, known.last)),
            _ => None,
        }
    }

    /// Places whose outcome is open.
    pub fn open(&self) -> BTreeSet<String> {
        let inner = self.inner();
        let open = inner.places.iter().filter(|(_, place)| place.open);
        open.map(|(name, _)| name.clone()).collect()
    }

    /// A checker looked at a place where nothing is under way, and found these bytes or nothing.
    /// That settles what it holds.
    ///
    /// # Errors
    /// When it is none of the possibilities.
    pub fn settle_bytes(&self, place: &str, found: Option<&[u8]>) -> Result<State> {
        let state = match found {
            None => State::Absent,
            Some(bytes) => match Payload::judge(place, bytes) {
                Ok(payload) => State::Holds(payload),
                Err(error) => match self.begins(place, bytes) {
                    Some(state) => state,
                    None => return Err(error.context(self.story(place))),
                },
            },
        };
        self.settle(place, state)
    }

    /// What may have been left of a write through the mount, or was found before, if these bytes
    /// are that.
    fn begins(&self, place: &str, bytes: &[u8]) -> Option<State> {
        let length = bytes.len() as u64;
        let inner = self.inner();
        let known = inner.places.get(place)?;
        let settled = known.possible.iter().filter_map(|state| match state {
            State::Begins(payload, there) if *there == length => Some(*payload),
            _ => None,
        });
        settled
            .chain(known.partly)
            .find(|payload| payload.content(place).starts_with(bytes))
            .map(|payload| State::Begins(payload, length))
    }

    /// As [`History::settle_bytes`], for what was found.
    ///
    /// # Errors
    /// When it is none of the possibilities.
    pub fn settle(&self, place: &str, found: State) -> Result<State> {
        let mut inner = self.inner();
        let Some(known) = inner.places.get_mut(place) else {
            if found == State::Absent {
                return Ok(found);
            }
            bail!("{place} holds {found:?}, and nobody ever wrote it");
        };
        let part = matches!(found, State::Begins(payload, _) if known.partly == Some(payload));
        if !part && !known.possible.contains(&found) {
            let possible = known.possible.clone();
            drop(inner);
            bail!("{place} holds {found:?}, not {possible:?}\n{}", self.story(place));
        }
        let whole = known.partly.is_some_and(|payload| found == State::Holds(payload));
        if known.pending && !whole {
            return Ok(found); // and it may still change
        }
        known.possible = vec![found];
        known.open = false;
        known.partly = None;
        known.pending = false;
        Ok(found)
    }

    /// All that happened at a place, for messages.
    pub fn story(&self, place: &str) -> String {
        let inner = self.inner();
        let own = inner.entries.iter().filter(|entry| entry.place == place);
        let lines: Vec<String> = own
            .map(|entry| {
                let ended = entry.ended_ms.map_or_else(|| "…".to_owned(), |at| at.to_string());
                format!(
                    "  {:>8} to {ended:>8} ms  {:?} by {:?}: {:?}",
                    entry.began_ms, entry.intent, entry.way, entry.outcome
                )
            })
            .collect();
        format!("what happened at {place}:\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
    }

    /// Writes the whole history, one JSON object a line.
    ///
    /// # Errors
    /// Of the disk.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file =
            std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut out = std::io::BufWriter::new(file);
        for entry in &self.inner().entries {
            serde_json::to_writer(&mut out, entry)?;
            out.write_all(b"\n")?;
        }
        Ok(out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn put(history: &History, way: Way) -> (Ticket, Payload) {
        let decide = |generation, _| Some(State::Holds(Payload { generation, bytes: 300 }));
        let (ticket, intent) = history.begin("/a", way, decide).unwrap();
        let State::Holds(payload) = intent else { panic!("{intent:?}") };
        (ticket, payload)
    }

    #[test]
    fn an_acknowledged_operation_leaves_no_choice() {
        let history = History::new();
        let (ticket, first) = put(&history, Way::Client);
        assert!(history.begin("/a", Way::Client, |_, now| Some(now)).is_none(), "busy");
        history.acknowledged(ticket);
        assert!(history.settle_bytes("/a", None).is_err());
        assert!(history.settle_bytes("/a", Some(&first.content("/a"))).is_ok());
        assert!(history.settle_bytes("/a", Some(&first.content("/a")[..299])).is_err());
        assert!(history.settle_bytes("/b", Some(b"x")).is_err());
        assert!(history.settle_bytes("/b", None).is_ok());
        assert_eq!(history.counts(), (1, 0));
    }

    #[test]
    fn an_open_outcome_is_settled_by_looking() {
        let history = History::new();
        let (ticket, first) = put(&history, Way::Client);
        history.acknowledged(ticket);
        let (ticket, second) = put(&history, Way::Client);
        history.unknown(ticket, "the power went");
        assert!(history.begin("/a", Way::Client, |_, now| Some(now)).is_none(), "open");
        assert_eq!(history.open().len(), 1);
        assert!(history.settle_bytes("/a", None).is_err(), "never absent");
        assert!(history.settle_bytes("/a", Some(&second.content("/a")[..200])).is_err());
        history.settle_bytes("/a", Some(&second.content("/a"))).unwrap();
        let error = history.settle_bytes("/a", Some(&first.content("/a"))).unwrap_err();
        assert!(format!("{error:#}").contains("the power went"), "{error:#}");
    }

    #[test]
    fn only_the_mount_may_leave_a_part() {
        let history = History::new();
        let (ticket, payload) = put(&history, Way::Mount);
        history.unknown(ticket, "no answer");
        let part = payload.content("/a").slice(..200);
        history.settle_bytes("/a", None).unwrap();
        history.settle_bytes("/a", Some(&part)).unwrap();
        assert_eq!(history.open().len(), 1, "the mount may still store it");
        history.mount_ended();
        assert_eq!(history.settle_bytes("/a", Some(&part)).unwrap(), State::Begins(payload, 200));
        assert!(history.settle_bytes("/a", Some(&part)).is_ok(), "and it stays");
        let (ticket, _) = put(&history, Way::MountRename);
        history.unknown(ticket, "no answer");
        assert!(history.settle_bytes("/a", Some(&part)).is_ok(), "also after a failed replacement");
        assert!(history.settle_bytes("/a", Some(&part[..100])).is_err());
        assert!(history.settle_bytes("/a", None).is_err());
    }
}
