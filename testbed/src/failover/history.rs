//! What clients ask and are answered, and what the masters' state does with it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::linear::{self, Finding, Model};

/// An operation on one of the two names of a directory, or on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum NameAsk {
    /// Make a file of this name that belongs to this user, unless there is one.
    Make(usize, u32),
    /// Remove the name.
    Remove(usize),
    /// Exchange what the two names stand for: twice is as if never.
    Exchange,
    /// Whose file has this name?
    Look(usize),
    /// And both at once.
    List,
}

/// How it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum NameAnswer {
    /// It is done.
    Done,
    /// There is one already.
    Exists,
    /// There is none.
    Absent,
    /// The owner of the file.
    Owner(u32),
    /// Both.
    Owners([Option<u32>; 2]),
}

/// A directory with two names.
pub(super) struct Names;

impl Model for Names {
    type State = [Option<u32>; 2];
    type Input = NameAsk;
    type Output = NameAnswer;

    fn start(&self) -> Self::State {
        [None; 2]
    }

    fn step(
        &self,
        state: &Self::State,
        input: &NameAsk,
        output: Option<&NameAnswer>,
    ) -> Option<Self::State> {
        let mut next = *state;
        let answer = match *input {
            NameAsk::Make(at, owner) => {
                if state[at].is_some() {
                    NameAnswer::Exists
                } else {
                    next[at] = Some(owner);
                    NameAnswer::Done
                }
            }
            NameAsk::Remove(at) => match next[at].take() {
                Some(_) => NameAnswer::Done,
                None => NameAnswer::Absent,
            },
            NameAsk::Exchange if state.contains(&None) => NameAnswer::Absent,
            NameAsk::Exchange => {
                next.swap(0, 1);
                NameAnswer::Done
            }
            NameAsk::Look(at) => state[at].map_or(NameAnswer::Absent, NameAnswer::Owner),
            NameAsk::List => NameAnswer::Owners(*state),
        };
        output.is_none_or(|output| *output == answer).then_some(next)
    }
}

/// A number that stands for one of the deploys of the site.
pub(super) type Deploy = usize;

/// An operation on an alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum AliasAsk {
    /// Move it, if it points at this deploy now (at nothing: `None`).
    Move {
        /// Where it must point at now.
        from: Option<Deploy>,
        /// Where it points at then.
        to: Deploy,
    },
    /// Where does it point at?
    Show,
}

/// How it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum AliasAnswer {
    /// It was moved away from there, by this entry of the publish log.
    Moved(Option<Deploy>, u64),
    /// It pointed at something else.
    Conflict,
    /// Where it points at.
    At(Option<Deploy>),
}

/// One alias.
pub(super) struct Alias;

impl Model for Alias {
    type State = Option<Deploy>;
    type Input = AliasAsk;
    type Output = AliasAnswer;

    fn start(&self) -> Self::State {
        None
    }

    fn step(
        &self,
        state: &Self::State,
        input: &AliasAsk,
        output: Option<&AliasAnswer>,
    ) -> Option<Self::State> {
        match (*input, output) {
            (AliasAsk::Show, None) => Some(*state),
            (AliasAsk::Show, Some(AliasAnswer::At(at))) => (at == state).then_some(*state),
            (AliasAsk::Move { from, to }, None) => {
                Some(if from == *state { Some(to) } else { *state })
            }
            (AliasAsk::Move { from, .. }, Some(AliasAnswer::Conflict)) => {
                (from != *state).then_some(*state)
            }
            (AliasAsk::Move { from, to }, Some(AliasAnswer::Moved(previous, _))) => {
                (from == *state && previous == state).then_some(Some(to))
            }
            (AliasAsk::Show | AliasAsk::Move { .. }, Some(_)) => None,
        }
    }
}

/// An operation on a name, as its client saw it.
pub(super) type NameOp = linear::Op<NameAsk, NameAnswer>;
/// An operation on an alias, as its client saw it.
pub(super) type AliasOp = linear::Op<AliasAsk, AliasAnswer>;

/// Everything of one round.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By directory.
    pub(super) names: BTreeMap<usize, Vec<NameOp>>,
    /// On the alias.
    pub(super) alias: Vec<AliasOp>,
    /// What must never be, as clients found it.
    pub(super) wrong: Vec<String>,
}

impl History {
    /// What is wrong with it, given the alias's entries in the publish log.
    pub(super) fn judge(&self, log: &[(u64, Option<Deploy>)]) -> Vec<String> {
        let mut wrong = self.wrong.clone();
        for (directory, ops) in &self.names {
            say(&mut wrong, &format!("directory {directory}"), &Names, ops);
        }
        say(&mut wrong, "the alias", &Alias, &self.alias);
        wrong.extend(self.compare(log));
        wrong
    }

    /// Every acknowledged move is in the log exactly once, and nothing is there that nobody asked for.
    fn compare(&self, log: &[(u64, Option<Deploy>)]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut rest: BTreeMap<u64, Option<Deploy>> = BTreeMap::new();
        for (seq, deploy) in log {
            if rest.insert(*seq, *deploy).is_some() {
                wrong.push(format!("entry {seq} is in the publish log twice"));
            }
        }
        let mut open: Vec<Deploy> = Vec::new();
        for op in &self.alias {
            match (&op.input, &op.answer) {
                (AliasAsk::Move { to, .. }, Some((_, AliasAnswer::Moved(_, seq)))) => {
                    match rest.remove(seq) {
                        Some(Some(deploy)) if deploy == *to => {}
                        found => wrong.push(format!(
                            "{op:?} was acknowledged, but entry {seq} of the publish log is \
                             {found:?}"
                        )),
                    }
                }
                (AliasAsk::Move { to, .. }, None) => open.push(*to),
                _ => {}
            }
        }
        for (seq, deploy) in rest {
            let asked = open.iter().position(|to| Some(*to) == deploy);
            match asked {
                Some(at) => drop(open.swap_remove(at)),
                None => wrong.push(format!(
                    "entry {seq} of the publish log sets the alias to {deploy:?}, which no open \
                     request asked for"
                )),
            }
        }
        wrong
    }

    /// Operations, and those of them without an answer.
    pub(super) fn count(&self) -> (usize, usize) {
        let names = self.names.values().flatten().map(|op| op.answer.is_none());
        let all = names.chain(self.alias.iter().map(|op| op.answer.is_none()));
        all.fold((0, 0), |(all, open), is_open| (all + 1, open + usize::from(is_open)))
    }

    /// When changes were answered that were asked for after this moment: the first of them.
    pub(super) fn next_change(&self, after: u64) -> Option<u64> {
        let names = self.names.values().flatten().filter_map(|op| {
            let changes = !matches!(op.input, NameAsk::Look(_) | NameAsk::List);
            (changes && op.asked >= after).then_some(op.answer.as_ref()?.0)
        });
        let alias = self.alias.iter().filter_map(|op| {
            let changes = op.input != AliasAsk::Show;
            (changes && op.asked >= after).then_some(op.answer.as_ref()?.0)
        });
        names.chain(alias).min()
    }

    /// All of it in the order of time, for a reader.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<(u64, String)> = Vec::new();
        for (directory, ops) in &self.names {
            let line = |op: &NameOp| (op.asked, format!("directory {directory}: {op:?}"));
            lines.extend(ops.iter().map(line));
        }
        lines.extend(self.alias.iter().map(|op| (op.asked, format!("alias: {op:?}"))));
        lines.sort();
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        lines.join("\n")
    }
}

/// The operations around the one that nothing explains.
const SHOWN: usize = 12;

fn say<M: Model>(
    wrong: &mut Vec<String>,
    what: &str,
    model: &M,
    ops: &[linear::Op<M::Input, M::Output>],
) where
    M::Input: std::fmt::Debug + Clone,
    M::Output: std::fmt::Debug + Clone,
{
    match linear::check(model, ops) {
        Finding::Linearizable => {}
        Finding::Undecided(steps) => {
            wrong.push(format!("{what}: no verdict after {steps} steps: fewer clients are needed"));
        }
        Finding::Violation(count) => {
            let mut answered: Vec<_> = ops.iter().filter(|op| op.answer.is_some()).collect();
            answered.sort_by_key(|op| op.answer.as_ref().map(|(at, _)| *at));
            let shown = &answered[count.saturating_sub(SHOWN)..count];
            let lines: Vec<String> = shown.iter().map(|op| format!("  {op:?}")).collect();
            wrong.push(format!(
                "{what}: no order explains the answers up to the last of these ({count} in all):\n{}",
                lines.join("\n")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(from: Option<Deploy>, to: Deploy, asked: u64, seq: u64) -> AliasOp {
        let answer = Some((asked + 1, AliasAnswer::Moved(from, seq)));
        AliasOp { client: 0, input: AliasAsk::Move { from, to }, asked, answer }
    }

    #[test]
    fn an_exchange_carried_out_twice_is_seen() {
        let op = |input, asked, answer| NameOp {
            client: 1,
            input,
            asked,
            answer: Some((asked + 1, answer)),
        };
        let mut history = History::default();
        let ops = vec![
            op(NameAsk::Make(0, 7), 0, NameAnswer::Done),
            op(NameAsk::Make(1, 8), 2, NameAnswer::Done),
            op(NameAsk::Exchange, 4, NameAnswer::Done),
            op(NameAsk::List, 6, NameAnswer::Owners([Some(8), Some(7)])),
        ];
        history.names.insert(3, ops);
        assert!(history.judge(&[]).is_empty());
        if let Some(ops) = history.names.get_mut(&3) {
            ops[3].answer = Some((7, NameAnswer::Owners([Some(7), Some(8)])));
        }
        let wrong = history.judge(&[]);
        assert!(wrong.len() == 1 && wrong[0].starts_with("directory 3"), "{wrong:?}");
    }

    #[test]
    fn the_log_has_every_move_once_and_nothing_else() {
        let mut history = History { alias: vec![moved(None, 1, 0, 10)], ..History::default() };
        assert!(history.judge(&[(10, Some(1))]).is_empty());
        assert_eq!(history.judge(&[]).len(), 1, "lost");
        assert_eq!(history.judge(&[(10, Some(1)), (11, Some(1))]).len(), 1, "done twice");
        assert_eq!(history.judge(&[(10, Some(2))]).len(), 1, "another");
        let open = AliasAsk::Move { from: Some(1), to: 2 };
        history.alias.push(AliasOp { client: 1, input: open, asked: 5, answer: None });
        assert!(history.judge(&[(10, Some(1))]).is_empty());
        assert!(history.judge(&[(10, Some(1)), (11, Some(2))]).is_empty());
        assert_eq!(history.judge(&[(10, Some(1)), (11, Some(2)), (12, Some(2))]).len(), 1);
    }

    #[test]
    fn the_next_change_is_one_that_was_asked_for_later() {
        let mut history = History { alias: vec![moved(None, 1, 0, 10)], ..History::default() };
        assert_eq!(history.next_change(0), Some(1));
        assert_eq!(history.next_change(1), None);
        history.alias.push(moved(Some(1), 2, 5, 11));
        assert_eq!(history.next_change(1), Some(6));
    }
}
