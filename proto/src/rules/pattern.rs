//! Which paths a rule is about.
//!
//! A pattern is a list of segments, compared with the segments of a decoded path. A segment has at
//! most one wildcard and a pattern at most one splat, so that comparing never has to try twice.

use serde::{Deserialize, Serialize};

use crate::{limits, site::Dialect};

/// A host, perhaps, and segments.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pattern {
    /// Only requests for this host, in lower case.
    pub host: Option<String>,
    /// What the path is made of.
    pub segments: Vec<Segment>,
}

/// What one segment of a path must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment {
    /// These bytes.
    Literal(#[serde(with = "bytes_form")] Vec<u8>),
    /// Between these, at least one byte, which is captured.
    Name {
        /// What it begins with.
        #[serde(with = "bytes_form")]
        prefix: Vec<u8>,
        /// What it ends with.
        #[serde(with = "bytes_form")]
        suffix: Vec<u8>,
    },
    /// Any number of segments, captured, between these.
    Splat {
        /// What the first begins with.
        #[serde(with = "bytes_form")]
        prefix: Vec<u8>,
        /// What the last ends with.
        #[serde(with = "bytes_form")]
        suffix: Vec<u8>,
    },
}

/// Bytes as bytes, not as a list of numbers.
mod bytes_form {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        bytes::Bytes::deserialize(from).map(|bytes| bytes.to_vec())
    }
}

/// The segments of a decoded path as a dialect compares them. `path` has no slash at its ends;
/// `directory` says whether the request had one at the end.
///
/// Netlify's rules do not tell `/a` from `/a/`; Pages' do.
pub fn segments(dialect: Dialect, path: &[u8], directory: bool) -> Vec<&[u8]> {
    let mut segments = Vec::new();
    if !path.is_empty() {
        segments.extend(path.split(|byte| *byte == b'/'));
    }
    if dialect == Dialect::Pages && (directory || path.is_empty()) {
        segments.push(&b""[..]);
    }
    segments
}

impl Segment {
    /// What a wildcard stands for when the segment is `whole`.
    pub(super) fn between<'p>(prefix: &[u8], suffix: &[u8], whole: &'p [u8]) -> Option<&'p [u8]> {
        whole.strip_prefix(prefix)?.strip_suffix(suffix)
    }

    /// Compares one segment of a path; `Some(None)`: equal, with nothing captured.
    fn matches<'p>(&self, asked: &'p [u8]) -> Option<Option<&'p [u8]>> {
        match self {
            Self::Literal(bytes) => (bytes == asked).then_some(None),
            Self::Name { prefix, suffix } => {
                Self::between(prefix, suffix, asked).filter(|name| !name.is_empty()).map(Some)
            }
            Self::Splat { .. } => None,
        }
    }
}

impl Segment {
    /// What a path that fits ends with, at least.
    pub(super) fn end(&self) -> &[u8] {
        match self {
            Self::Literal(bytes) => bytes,
            Self::Name { suffix, .. } | Self::Splat { suffix, .. } => suffix,
        }
    }

    /// Whether one segment of a path may be both; never wrongly `false`.
    fn meets(&self, other: &Segment) -> bool {
        match (self, other) {
            (Self::Literal(own), Self::Literal(other)) => own == other,
            (Self::Literal(own), wild) | (wild, Self::Literal(own)) => wild.matches(own).is_some(),
            (Self::Name { prefix, suffix }, Self::Name { prefix: begin, suffix: end }) => {
                (prefix.starts_with(begin) || begin.starts_with(prefix))
                    && (suffix.ends_with(end) || end.ends_with(suffix))
            }
            (Self::Splat { .. }, _) | (_, Self::Splat { .. }) => true,
        }
    }
}

impl Pattern {
    /// Whether a path may fit both this and these segments; never wrongly `false`.
    pub(super) fn meets(&self, other: &[Segment]) -> bool {
        let own = &self.segments;
        if let (Some(last), Some(their)) = (own.last(), other.last())
            && !last.end().ends_with(their.end())
            && !their.end().ends_with(last.end())
        {
            return false;
        }
        let splat = |segments: &[Segment], at: usize| {
            matches!(segments.get(at), Some(Segment::Splat { .. }))
        };
        // Whether the rests from here on may both fit, from the ends to the beginnings.
        let mut fits = vec![vec![false; other.len() + 1]; own.len() + 1];
        for at in (0..=own.len()).rev() {
            for their in (0..=other.len()).rev() {
                let next = |own: usize, other: usize| {
                    fits.get(own).and_then(|row: &Vec<bool>| row.get(other)) == Some(&true)
                };
                let ends = at == own.len() && their == other.len();
                let (wild, theirs) = (splat(own, at), splat(other, their));
                // A splat ends here, or goes on over what the other has.
                let over = (wild || theirs) && (next(at + 1, their) || next(at, their + 1));
                let both = match (own.get(at), other.get(their)) {
                    (Some(one), Some(two)) => one.meets(two) && next(at + 1, their + 1),
                    _ => false,
                };
                fits[at][their] = ends || over || both;
            }
        }
        fits[0][0]
    }

    /// Whether a request may be for the hosts of both.
    pub(super) fn host_meets(&self, other: &Pattern) -> bool {
        match (&self.host, &other.host) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        }
    }

    /// Whether it keeps the bounds.
    pub fn is_sound(&self) -> bool {
        let splat = |segment: &&Segment| matches!(segment, Segment::Splat { .. });
        self.segments.len() <= limits::RULE_SEGMENTS_MAX
            && self.segments.iter().filter(splat).count() <= 1
    }

    /// Number of captures.
    pub fn captures(&self) -> usize {
        self.segments.iter().filter(|s| !matches!(s, Segment::Literal(_))).count()
    }

    /// Whether it ends in or holds a splat.
    pub fn has_splat(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Splat { .. }))
    }

    /// What the wildcards stand for, in order, if it is about this path.
    pub fn captured(&self, dialect: Dialect, host: &str, asked: &[&[u8]]) -> Option<Vec<Vec<u8>>> {
        if self.host.as_ref().is_some_and(|own| own != host) {
            return None;
        }
        self.captured_at_any_host(dialect, asked)
    }

    /// As [`Pattern::captured`], whatever the host.
    pub(super) fn captured_at_any_host(
        &self,
        dialect: Dialect,
        asked: &[&[u8]],
    ) -> Option<Vec<Vec<u8>>> {
        let mut captured = Vec::new();
        let splat = self.segments.iter().position(|s| matches!(s, Segment::Splat { .. }));
        let Some(at) = splat else {
            if self.segments.len() != asked.len() {
                return None;
            }
            fixed(&self.segments, asked, &mut captured)?;
            return Some(captured);
        };
        let (before, after) = (&self.segments[..at], &self.segments[at + 1..]);
        let middle = asked.len().checked_sub(before.len() + after.len())?;
        fixed(before, &asked[..at], &mut captured)?;
        let Segment::Splat { prefix, suffix } = &self.segments[at] else { return None };
        if middle == 0 {
            // `/news/*` is also about `/news` where a final slash makes no difference.
            let bare = prefix.is_empty() && suffix.is_empty() && after.is_empty();
            if dialect != Dialect::Netlify || !bare {
                return None;
            }
            captured.push(Vec::new());
            return Some(captured);
        }
        let whole = asked[at..at + middle].join(&b'/');
        captured.push(Segment::between(prefix, suffix, &whole)?.to_vec());
        fixed(after, &asked[at + middle..], &mut captured)?;
        Some(captured)
    }
}

/// Compares segments one by one; the lists have equal lengths.
fn fixed(own: &[Segment], asked: &[&[u8]], captured: &mut Vec<Vec<u8>>) -> Option<()> {
    for (own, asked) in own.iter().zip(asked) {
        captured.extend(own.matches(asked)?.map(<[u8]>::to_vec));
    }
    Some(())
}
