//! Finding the rules that may be about a path, among a hundred thousand.
//!
//! Rules with equal beginnings share nodes. [`Trie::candidates`] follows every way through the tree
//! that fits the path's segments; what it finds still has to be compared in full, and everything
//! that fits is found. The ways are bounded by the nodes that the site's own rules made.

use std::collections::BTreeMap;

use super::pattern::{Pattern, Segment};

/// Rules by the segments of their patterns.
#[derive(Debug)]
pub struct Trie {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    literals: BTreeMap<Box<[u8]>, usize>,
    /// A wildcard with nothing around it.
    any: Option<usize>,
    /// Wildcards with something around them.
    names: BTreeMap<(Box<[u8]>, Box<[u8]>), usize>,
    /// Rules that end here.
    ends: Vec<u32>,
    /// Rules that go on with a splat.
    splats: Vec<u32>,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Trie {
    /// Adds a rule by its number.
    pub fn insert(&mut self, pattern: &Pattern, number: u32) {
        let mut at = 0;
        for segment in &pattern.segments {
            if matches!(segment, Segment::Splat { .. }) {
                self.nodes[at].splats.push(number);
                return;
            }
            at = self.child(at, segment);
        }
        self.nodes[at].ends.push(number);
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
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        child
    }

    /// Numbers of the rules that may be about a path of these segments, lowest first.
    pub fn candidates(&self, asked: &[&[u8]]) -> Vec<u32> {
        let mut found = Vec::new();
        let mut level = vec![0];
        for segment in asked {
            let mut below = Vec::new();
            for at in level {
                let node = &self.nodes[at];
                found.extend(&node.splats);
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
        for at in level {
            found.extend(&self.nodes[at].splats);
            found.extend(&self.nodes[at].ends);
        }
        found.sort_unstable();
        found
    }
}
