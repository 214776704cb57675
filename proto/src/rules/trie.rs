//! Finding the rules that may be about a request, among a hundred thousand.
//!
//! Rules with equal beginnings share nodes. [`Trie::candidates`] follows every way through the tree
//! that fits the path's segments; what it finds still has to be compared in full, and everything
//! that fits is found. Rules at one place are told apart by the host and the first parameter of the
//! query that they want, so that a thousand rules for `/index.php` cost no more than one.
//! [`Trie::work`] bounds what any request can make of it.

use std::collections::BTreeMap;

use super::pattern::{Pattern, Segment};
use crate::limits;

/// Rules by the segments of their patterns.
#[derive(Debug)]
pub struct Trie {
    nodes: Vec<Node>,
}

/// A name and a value, or what stands before and after something.
pub type Two = (Box<[u8]>, Box<[u8]>);

/// What a rule wants beside the path, as far as rules are sorted by it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Key {
    /// The host, in lower case.
    pub host: Option<Box<str>>,
    /// Name and value of a parameter.
    pub parameter: Option<Two>,
}

#[derive(Debug, Default)]
struct Node {
    /// A node below has a greater number than the one above it.
    literals: BTreeMap<Box<[u8]>, usize>,
    /// A wildcard with nothing around it.
    any: Option<usize>,
    /// Wildcards with something around them.
    names: BTreeMap<Two, usize>,
    /// Rules that end here.
    ends: Place,
    /// Rules that go on with a splat.
    splats: Place,
}

/// The rules at one place.
#[derive(Debug, Default)]
struct Place {
    /// They want nothing beside the path.
    free: Numbers,
    keyed: BTreeMap<Key, Numbers>,
}

/// Rules by their numbers, and what all of them cost.
#[derive(Debug, Default)]
struct Numbers {
    numbers: Vec<u32>,
    work: usize,
}

impl Numbers {
    fn add(&mut self, number: u32, work: usize) {
        self.numbers.push(number);
        self.work = self.work.saturating_add(work);
    }
}

/// What a node takes in memory, about: itself, and the smallest map of what is below it.
pub const NODE_BYTES: usize = 450;

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Trie {
    /// Adds a rule by its number, with what it costs a request that it fits.
    pub fn insert(&mut self, pattern: &Pattern, key: Key, number: u32, work: usize) {
        let mut at = 0;
        for segment in &pattern.segments {
            if matches!(segment, Segment::Splat { .. }) {
                self.nodes[at].splats.insert(key, number, work);
                return;
            }
            at = self.child(at, segment);
        }
        self.nodes[at].ends.insert(key, number, work);
    }

    fn child(&mut self, at: usize, segment: &Segment) -> usize {
        let next = self.nodes.len();
        let node = &mut self.nodes[at];
        let child = match segment {
            Segment::Literal(bytes) => match node.literals.get(bytes.as_slice()) {
                Some(child) => *child,
                None => *node.literals.entry(bytes.as_slice().into()).or_insert(next),
            },
            Segment::Name { prefix, suffix } if prefix.is_empty() && suffix.is_empty() => {
                *node.any.get_or_insert(next)
            }
            Segment::Name { prefix, suffix } | Segment::Splat { prefix, suffix } => {
                let around = (prefix.as_slice().into(), suffix.as_slice().into());
                *node.names.entry(around).or_insert(next)
            }
            Segment::Names { texts } => {
                let end = |text: Option<&Vec<u8>>| Box::from(text.map_or(&b""[..], Vec::as_slice));
                *node.names.entry((end(texts.first()), end(texts.last()))).or_insert(next)
            }
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        child
    }

    /// Numbers of the rules that may be about a path of these segments, lowest first. `keys` has
    /// what the request has: every combination that a rule may want, but not the empty one.
    pub fn candidates(&self, asked: &[&[u8]], keys: &[Key]) -> Vec<u32> {
        self.gathered(asked, |place, found| place.find(keys, found)).0
    }

    /// As [`Trie::candidates`], but whatever the request has beside the path; with the number of
    /// nodes that were looked at.
    pub fn all_candidates(&self, asked: &[&[u8]]) -> (Vec<u32>, usize) {
        self.gathered(asked, |place, found| {
            found.extend(&place.free.numbers);
            found.extend(place.keyed.values().flat_map(|own| &own.numbers));
        })
    }

    fn gathered(&self, asked: &[&[u8]], find: impl Fn(&Place, &mut Vec<u32>)) -> (Vec<u32>, usize) {
        let mut found = Vec::new();
        let mut level = vec![0];
        let mut nodes = 0;
        for segment in asked {
            let mut below = Vec::new();
            nodes += level.len();
            for at in level {
                let node = &self.nodes[at];
                nodes += node.names.len();
                find(&node.splats, &mut found);
                below.extend(node.literals.get(*segment));
                if !segment.is_empty() {
                    below.extend(node.any);
                }
                for ((prefix, suffix), child) in &node.names {
                    let name = Segment::between(prefix, suffix, segment);
                    below.extend(name.filter(|name| !name.is_empty()).map(|_| *child));
                }
            }
            level = below;
        }
        nodes += level.len();
        for at in level {
            find(&self.nodes[at].splats, &mut found);
            find(&self.nodes[at].ends, &mut found);
        }
        found.sort_unstable();
        (found, nodes)
    }

    /// What it takes in memory, in bytes, about.
    pub fn memory_bytes(&self) -> usize {
        self.nodes.len() * NODE_BYTES
    }

    /// The most that any request can cost: nodes it visits, wildcards it compares, and what the rules
    /// it finds do.
    pub fn work(&self) -> usize {
        let mut work = vec![0_usize; self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let below = |child: &usize| work.get(*child).copied().unwrap_or(0);
            // A segment is one literal at most, but may fit every wildcard.
            let literal = node.literals.values().map(below).max().unwrap_or(0);
            let any = node.any.as_ref().map_or(0, below);
            let names: usize = node.names.values().map(|child| 1 + below(child)).sum();
            let own = 1 + node.ends.work() + node.splats.work();
            work[at] = own.saturating_add(literal).saturating_add(any).saturating_add(names);
        }
        work.first().copied().unwrap_or(0)
    }
}

/// What looking into a place with keys costs beside what is found there.
const KEYED_WORK: usize = 16;

impl Place {
    fn insert(&mut self, key: Key, number: u32, work: usize) {
        match key {
            Key { host: None, parameter: None } => self.free.add(number, work),
            key => self.keyed.entry(key).or_default().add(number, work),
        }
    }

    fn find(&self, keys: &[Key], found: &mut Vec<u32>) {
        found.extend(&self.free.numbers);
        if !self.keyed.is_empty() {
            let keyed = keys.iter().filter_map(|key| self.keyed.get(key));
            found.extend(keyed.flat_map(|place| &place.numbers));
        }
    }

    /// A query has so many parameters at most, each of which may be the key of other rules, with the
    /// host and without; and so may the host alone.
    fn work(&self) -> usize {
        if self.keyed.is_empty() {
            return self.free.work;
        }
        let mut works: Vec<usize> = self.keyed.values().map(|place| place.work).collect();
        works.sort_unstable_by(|a, b| b.cmp(a));
        let most: usize = works.iter().take(2 * limits::RULE_PARAMETERS_MAX + 1).sum();
        self.free.work + KEYED_WORK + most
    }
}
