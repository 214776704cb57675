//! A model of sessions: a client that numbers its requests, masters that follow each other as leaders
//! (some of which do not know that they are none any more, or have not applied everything yet), entries
//! that are committed late or never, and a network that loses, repeats and delays; stateright
//! explores every order of what may happen, up to the bounds.
//!
//! The rules are those of the master's state machine and leader: a number that was answered is
//! answered again; a reply is forgotten once the client says that it needs none below some number; a
//! refusal that is not in the log is only given after a confirmation of leadership.
//!
//! Each planted mistake must be found: it shows that the model can see it.

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, HasDiscoveries, Model, Property};

const ONCE: &str = "no request is carried out twice";
const ALIKE: &str = "all answers to a request are alike";
const DURABLE: &str = "what was acknowledged is carried out";
const NEVER_REFUSED: &str = "what relies on something acknowledged is not refused";
const REPEATED: &str = "a repeat is answered from the table";

/// The request that is refused unless the first one was carried out.
const RELIES: u8 = 2;

/// What is done wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// Replies are not kept.
    NoTable,
    /// The client says that it needs no reply below its latest request.
    ForgetTooEarly,
    /// A leader refuses from what it has applied, without a confirmation.
    RefuseUnconfirmed,
}

/// The bounds of one exploration.
#[derive(Debug, Clone)]
struct Sessions {
    mistake: Mistake,
    requests: u8,
    pending: usize,
    committed: usize,
}

/// A request as it is sent and logged: its number, and below which no reply is needed.
type Request = (u8, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Answer {
    /// Carried out, by this entry of the log.
    Done(u8),
    /// What it relies on is not there.
    Refused,
    /// It was acknowledged before, says the table.
    Forgotten,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct State {
    /// Entries that a majority has.
    committed: Vec<Request>,
    /// Entries of some leader, which may be committed yet.
    pending: Vec<Request>,
    /// Every request that was sent; each may arrive at any time and any number of times.
    sent: BTreeSet<Request>,
    /// Answers under way.
    answers: BTreeSet<(u8, Answer)>,
    /// Numbers that the client waits for.
    open: BTreeSet<u8>,
    /// What the client was answered while it waited.
    told: BTreeMap<u8, Answer>,
    /// Whether some answer came from the table.
    repeated: bool,
    last: u8,
}

/// The table and what was done, after some entries.
#[derive(Debug, Default)]
struct Applied {
    below: u8,
    replies: BTreeMap<u8, Answer>,
    done: BTreeMap<u8, usize>,
}

impl Applied {
    fn of(mistake: Mistake, entries: &[Request]) -> (Self, Option<Answer>) {
        let mut applied = Self::default();
        let mut answer = None;
        for (index, request) in (1..).zip(entries) {
            answer = Some(applied.apply(mistake, *request, index));
        }
        (applied, answer)
    }

    /// The answer without carrying anything out, if there is one.
    fn repeat(&self, (number, _): Request) -> Option<Answer> {
        if number < self.below {
            return Some(Answer::Forgotten);
        }
        self.replies.get(&number).copied()
    }

    fn refuses(&self, number: u8) -> bool {
        number == RELIES && !self.done.contains_key(&1)
    }

    fn apply(&mut self, mistake: Mistake, request: Request, index: u8) -> Answer {
        if let Some(answer) = self.repeat(request) {
            return answer;
        }
        let (number, below) = request;
        if below > self.below {
            self.replies.retain(|number, _| *number >= below);
            self.below = below;
        }
        let answer = if self.refuses(number) {
            Answer::Refused
        } else {
            *self.done.entry(number).or_default() += 1;
            Answer::Done(index)
        };
        if mistake != Mistake::NoTable {
            self.replies.insert(number, answer);
        }
        answer
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Send,
    GiveUp(u8),
    /// A request arrives at a leader, which has applied so many entries.
    Arrive(Request, usize),
    Commit(usize),
    Vanish(usize),
    Receive(u8, Answer),
}

impl Model for Sessions {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        // What relies on the first request is sent once that is acknowledged.
        let ready = state.last + 1 != RELIES || matches!(state.told.get(&1), Some(Answer::Done(_)));
        if state.last < self.requests && state.open.len() < 2 && ready {
            actions.push(Action::Send);
        }
        actions.extend(state.open.iter().map(|number| Action::GiveUp(*number)));
        for request in &state.sent {
            let views = 0..=state.committed.len();
            actions.extend(views.map(|view| Action::Arrive(*request, view)));
        }
        if state.committed.len() < self.committed {
            actions.extend((0..state.pending.len()).map(Action::Commit));
        }
        actions.extend((0..state.pending.len()).map(Action::Vanish));
        actions.extend(state.answers.iter().map(|(number, it)| Action::Receive(*number, *it)));
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Send => {
                state.last += 1;
                state.open.insert(state.last);
                let oldest = state.open.first().copied().unwrap_or(state.last);
                let early = self.mistake == Mistake::ForgetTooEarly;
                state.sent.insert((state.last, if early { state.last } else { oldest }));
            }
            Action::GiveUp(number) => {
                state.open.remove(&number);
            }
            Action::Arrive(request, view) => {
                let (seen, _) = Applied::of(self.mistake, &state.committed[..view]);
                // A confirmation: then it has applied everything that is committed.
                let (all, _) = Applied::of(self.mistake, &state.committed);
                let looks = if self.mistake == Mistake::RefuseUnconfirmed { &seen } else { &all };
                let answer = match seen.repeat(request) {
                    Some(answer @ Answer::Done(_)) => {
                        state.repeated = true;
                        Some(answer)
                    }
                    _ => match looks.repeat(request) {
                        None if looks.refuses(request.0) => Some(Answer::Refused),
                        other => other,
                    },
                };
                match answer {
                    Some(answer) => {
                        state.answers.insert((request.0, answer));
                    }
                    None if state.pending.len() < self.pending => state.pending.push(request),
                    None => return None,
                }
            }
            Action::Commit(at) => {
                let request = state.pending.remove(at);
                state.committed.push(request);
                let (_, answer) = Applied::of(self.mistake, &state.committed);
                state.answers.extend(answer.map(|answer| (request.0, answer)));
            }
            Action::Vanish(at) => {
                state.pending.remove(at);
            }
            Action::Receive(number, answer) => {
                state.answers.remove(&(number, answer));
                // Whoever does not wait any more does not look.
                if state.open.contains(&number) {
                    // It stays open in the model, so that a second answer is seen as well.
                    if let Some(earlier) = state.told.get(&number)
                        && *earlier == answer
                    {
                        return None;
                    }
                    state.told.entry(number).or_insert(answer);
                    if state.told[&number] != answer {
                        state.told.insert(number, Answer::Forgotten);
                    }
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONCE, |model: &Self, state: &State| {
                let (applied, _) = Applied::of(model.mistake, &state.committed);
                applied.done.values().all(|times| *times < 2)
            }),
            Property::always(ALIKE, |_, state: &State| {
                state.told.values().all(|answer| *answer != Answer::Forgotten)
            }),
            Property::always(DURABLE, |model: &Self, state: &State| {
                let (applied, _) = Applied::of(model.mistake, &state.committed);
                let done = |(number, _): &(&u8, &Answer)| applied.done.contains_key(number);
                let mut told = state.told.iter();
                told.all(|told| !matches!(told.1, Answer::Done(_)) || done(&told))
            }),
            Property::always(NEVER_REFUSED, |_, state: &State| {
                state.told.get(&RELIES) != Some(&Answer::Refused)
            }),
            Property::sometimes(REPEATED, |_, state: &State| state.repeated),
        ]
    }
}

/// What is broken.
fn broken(mistake: Mistake) -> Vec<&'static str> {
    let model = Sessions { mistake, requests: 3, pending: 2, committed: 3 };
    let checker = model.checker().finish_when(HasDiscoveries::All).spawn_bfs().join();
    let found = checker.discoveries();
    assert!(found.contains_key(REPEATED) || mistake == Mistake::NoTable, "nothing was repeated");
    let mut broken: Vec<&str> = found.into_keys().filter(|name| *name != REPEATED).collect();
    broken.sort_unstable();
    broken
}

#[test]
fn requests_are_carried_out_once_and_answered_alike() {
    assert_eq!(broken(Mistake::None), [""; 0]);
}

#[test]
fn planted_mistakes_are_found() {
    assert!(broken(Mistake::NoTable).contains(&ONCE));
    assert!(broken(Mistake::ForgetTooEarly).contains(&ALIKE));
    assert!(broken(Mistake::RefuseUnconfirmed).contains(&NEVER_REFUSED));
}
