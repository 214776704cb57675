//! Whether a history of concurrent operations is linearizable.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with Lowe's memory
//! of configurations seen ("Testing for linearizability", 2017): operations are taken in an order
//! that respects real time, until the model contradicts an answer; then the last choice is taken
//! back. An operation without an answer may have happened at any later time, or never.
//!
//! Knows nothing of clusters: a [`Model`] says what an operation does to a state.

use std::collections::HashSet;
use std::hash::Hash;

/// What a history is about.
pub trait Model {
    /// All that operations can see.
    type State: Clone + Eq + Hash;
    /// What was asked.
    type Input;
    /// What was answered.
    type Output;

    /// The state before the first operation.
    fn start(&self) -> Self::State;

    /// The state after an operation; `None` when it would not have been answered so. Without an
    /// answer, what it does if it happens.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;
}

/// One operation, as its client saw it. Times are of one clock, in any unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op<I, O> {
    /// Who asked, for readers.
    pub client: usize,
    /// What was asked.
    pub input: I,
    /// When.
    pub asked: u64,
    /// The answer and when it came; `None` when none came.
    pub answer: Option<(u64, O)>,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none. The number says how many answered operations, in the order of their answers, are
    /// enough to show it.
    Violation(usize),
    /// The search was given up after so many steps.
    Undecided(usize),
}

/// Steps after which a search is given up: seconds of work.
const STEPS_MAX: usize = 20_000_000;

/// Judges a history.
pub fn check<M: Model>(model: &M, history: &[Op<M::Input, M::Output>]) -> Finding {
    let whole = search(model, history, u64::MAX);
    let Outcome::None = whole else {
        return match whole {
            Outcome::Found => Finding::Linearizable,
            _ => Finding::Undecided(STEPS_MAX),
        };
    };
    // The shortest beginning that shows it: what a reader wants to see.
    let mut answers: Vec<u64> =
        history.iter().filter_map(|op| op.answer.as_ref().map(|(at, _)| *at)).collect();
    answers.sort_unstable();
    let (mut right, mut wrong) = (0, answers.len());
    while wrong - right > 1 {
        let middle = right + (wrong - right) / 2;
        match search(model, history, answers[middle - 1]) {
            Outcome::None => wrong = middle,
            _ => right = middle,
        }
    }
    Finding::Violation(wrong)
}

enum Outcome {
    Found,
    None,
    GivenUp,
}

/// The beginning or the end of an operation, in a doubly linked list ordered by time.
#[derive(Clone, Copy)]
struct Event {
    op: usize,
    /// For the beginning of an answered operation: where its end is.
    end: Option<usize>,
    is_end: bool,
    before: usize,
    after: usize,
}

/// Searches among what was asked until `until`; answers that came later are as if there were none.
fn search<M: Model>(model: &M, history: &[Op<M::Input, M::Output>], until: u64) -> Outcome {
    let answer = |op: usize| history[op].answer.as_ref().filter(|(at, _)| *at <= until);
    let mut events = ordered(history, until);
    let mut left = (0..history.len()).filter(|op| answer(*op).is_some()).count();
    let mut taken = Taken::new(history.len());
    let mut seen: HashSet<(Taken, M::State)> = HashSet::new();
    let mut choices: Vec<(usize, M::State)> = Vec::new();
    let mut state = model.start();
    let mut at = events[HEAD].after;
    let mut steps = 0;
    while left > 0 {
        steps += 1;
        if steps > STEPS_MAX {
            return Outcome::GivenUp;
        }
        // An answered operation is left, so its end is still in the list, behind every choice.
        let event = events[at];
        if !event.is_end {
            let output = answer(event.op).map(|(_, output)| output);
            let next = model.step(&state, &history[event.op].input, output);
            if let Some(next) = next {
                taken.set(event.op, true);
                if seen.insert((taken.clone(), next.clone())) {
                    choices.push((at, std::mem::replace(&mut state, next)));
                    lift(&mut events, at);
                    left -= usize::from(event.end.is_some());
                    at = events[HEAD].after;
                    continue;
                }
                taken.set(event.op, false);
            }
            at = event.after;
            continue;
        }
        let Some((begin, previous)) = choices.pop() else { return Outcome::None };
        state = previous;
        taken.set(events[begin].op, false);
        unlift(&mut events, begin);
        left += usize::from(events[begin].end.is_some());
        at = events[begin].after;
    }
    Outcome::Found
}

const HEAD: usize = 0;

fn ordered<I, O>(history: &[Op<I, O>], until: u64) -> Vec<Event> {
    // At the same moment a beginning comes first: the two then count as concurrent.
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (op, one) in history.iter().enumerate().filter(|(_, one)| one.asked <= until) {
        moments.push((one.asked, false, op));
        if let Some((at, _)) = &one.answer
            && *at <= until
        {
            moments.push(((*at).max(one.asked), true, op));
        }
    }
    moments.sort_unstable();
    let mut events = vec![Event { op: 0, end: None, is_end: true, before: 0, after: 1 }];
    let mut begins = vec![0; history.len()];
    for (place, (_, is_end, op)) in moments.into_iter().enumerate() {
        let place = place + 1;
        if is_end {
            let begin: usize = begins[op];
            let event: &mut Event = &mut events[begin];
            event.end = Some(place);
        } else {
            begins[op] = place;
        }
        events.push(Event { op, end: None, is_end, before: place - 1, after: place + 1 });
    }
    // A last one that is never taken, so that every event has one after it.
    let last = events.len();
    events.push(Event { op: 0, end: None, is_end: true, before: last - 1, after: last });
    events
}

fn unlink(events: &mut [Event], at: usize) {
    let Event { before, after, .. } = events[at];
    events[before].after = after;
    events[after].before = before;
}

fn link(events: &mut [Event], at: usize) {
    let Event { before, after, .. } = events[at];
    events[before].after = at;
    events[after].before = at;
}

fn lift(events: &mut [Event], begin: usize) {
    unlink(events, begin);
    if let Some(end) = events[begin].end {
        unlink(events, end);
    }
}

fn unlift(events: &mut [Event], begin: usize) {
    if let Some(end) = events[begin].end {
        link(events, end);
    }
    link(events, begin);
}

/// Which operations are taken.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Taken(Vec<u64>);

impl Taken {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn set(&mut self, op: usize, taken: bool) {
        let bit = 1 << (op % 64);
        if taken {
            self.0[op / 64] |= bit;
        } else {
            self.0[op / 64] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    /// A number that is read, written and compared-and-swapped.
    struct Register;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Input {
        Read,
        Write(u8),
        Swap(u8, u8),
    }

    impl Model for Register {
        type State = u8;
        type Input = Input;
        /// What was read; for a swap 1 if it won.
        type Output = u8;

        fn start(&self) -> u8 {
            0
        }

        fn step(&self, state: &u8, input: &Input, output: Option<&u8>) -> Option<u8> {
            let (answer, next) = match input {
                Input::Read => (*state, *state),
                Input::Write(value) => (0, *value),
                Input::Swap(from, to) if from == state => (1, *to),
                Input::Swap(..) => (0, *state),
            };
            output.is_none_or(|output| *output == answer).then_some(next)
        }
    }

    fn op(input: Input, asked: u64, answer: Option<(u64, u8)>) -> Op<Input, u8> {
        Op { client: 0, input, asked, answer }
    }

    #[test]
    fn a_read_of_what_was_replaced_is_found() {
        let mut history = vec![
            op(Input::Write(1), 0, Some((1, 0))),
            op(Input::Write(2), 2, Some((3, 0))),
            op(Input::Read, 4, Some((5, 1))),
            op(Input::Read, 6, Some((7, 2))),
        ];
        assert_eq!(check(&Register, &history), Finding::Violation(3));
        // Had it begun before the second write was answered, it would be right.
        history[2].asked = 3;
        assert_eq!(check(&Register, &history), Finding::Linearizable);
    }

    #[test]
    fn what_has_no_answer_happens_at_any_time_or_never() {
        let history = |seen: u8| {
            vec![
                op(Input::Write(1), 0, None),
                op(Input::Read, 4, Some((5, 0))),
                op(Input::Read, 6, Some((7, seen))),
                op(Input::Read, 8, Some((9, seen))),
            ]
        };
        assert_eq!(check(&Register, &history(0)), Finding::Linearizable);
        assert_eq!(check(&Register, &history(1)), Finding::Linearizable);
        assert_eq!(check(&Register, &history(2)), Finding::Violation(2));
        let mut back = history(1);
        back[3].answer = Some((9, 0));
        assert_eq!(check(&Register, &back), Finding::Violation(3));
    }

    #[test]
    fn a_swap_done_twice_is_found() {
        // One client swapped once; another put it back, and yet it is as after the swap.
        let history = vec![
            op(Input::Swap(0, 1), 0, Some((1, 1))),
            op(Input::Swap(1, 0), 2, Some((3, 1))),
            op(Input::Read, 4, Some((5, 1))),
        ];
        assert_eq!(check(&Register, &history), Finding::Violation(3));
    }

    #[test]
    fn nothing_and_only_unanswered_operations_are_right() {
        assert_eq!(check(&Register, &[]), Finding::Linearizable);
        assert_eq!(check(&Register, &[op(Input::Read, 0, None)]), Finding::Linearizable);
    }

    /// Every order of the operations, and every choice of the unanswered that happened.
    fn by_brute_force(history: &[Op<Input, u8>], taken: u32, state: u8) -> bool {
        let answered = |(number, op): (usize, &Op<Input, u8>)| {
            op.answer.is_none() || taken & (1 << number) != 0
        };
        if history.iter().enumerate().all(answered) {
            return true;
        }
        (0..history.len()).filter(|number| taken & (1 << number) == 0).any(|number| {
            let one = &history[number];
            let late = history.iter().enumerate().any(|(other, earlier)| {
                let done = earlier.answer.as_ref().is_some_and(|(at, _)| *at < one.asked);
                other != number && taken & (1 << other) == 0 && done
            });
            let output = one.answer.as_ref().map(|(_, output)| output);
            !late
                && Register
                    .step(&state, &one.input, output)
                    .is_some_and(|next| by_brute_force(history, taken | (1 << number), next))
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_brute_force(
            drawn in proptest::collection::vec(
                (0u8..3, 0u8..3, 0u8..3, 0u64..12, 0u64..6, proptest::option::weighted(0.8, 0u8..3)),
                0..7,
            ),
        ) {
            let history: Vec<Op<Input, u8>> = drawn
                .into_iter()
                .map(|(kind, from, to, asked, lasts, answer)| {
                    let (input, most) = match kind {
                        0 => (Input::Read, 2),
                        1 => (Input::Write(to), 0),
                        _ => (Input::Swap(from, to), 1),
                    };
                    op(input, asked, answer.map(|answer| (asked + lasts, answer.min(most))))
                })
                .collect();
            let right = by_brute_force(&history, 0, 0);
            let found = check(&Register, &history);
            prop_assert_eq!(found == Finding::Linearizable, right, "{:?}", found);
        }
    }
}
