//! Which paths a rule is about.
//!
//! A pattern is a list of segments, compared with the segments of a decoded path. Of several
//! placeholders in one segment the first takes as much as it can, as in the regular expressions of
//! Pages; what stands between them is looked for from the right, so that comparing never has to try
//! twice. Only patterns that capture nothing may have several splats: see [`super::globs`].

use serde::{Deserialize, Serialize};

use super::budget::{Budget, TooMuch};
use crate::{limits, site::Dialect};

/// A host, perhaps, and segments.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pattern {
    /// Only requests for this host, in lower case. A label that ends with a colon stands for one
    /// that begins with what is before the colon; the rest of it, at least a byte, is captured.
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
    /// Several placeholders between these texts, at least three: each captures at least one byte.
    Names {
        /// The first is what the segment begins with, the last what it ends with.
        texts: Vec<Vec<u8>>,
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
            Self::Names { .. } | Self::Splat { .. } => None,
        }
    }

    /// Compares one segment of a path, and adds what is captured.
    fn add_captured(&self, asked: &[u8], captured: &mut Vec<Vec<u8>>) -> Option<()> {
        match self {
            Self::Names { texts } => captured.extend(between_all(texts, asked)?),
            other => captured.extend(other.matches(asked)?.map(<[u8]>::to_vec)),
        }
        Some(())
    }
}

/// What stands between several texts in a segment, the first of it as long as can be.
fn between_all(texts: &[Vec<u8>], whole: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (first, rest) = texts.split_first()?;
    let (last, middle) = rest.split_last()?;
    let mut left = Segment::between(first, last, whole)?;
    let mut captured = Vec::with_capacity(rest.len());
    // As far right as can be, with a byte left for what comes after.
    for text in middle.iter().rev() {
        let room = left.len().checked_sub(1 + text.len())?;
        let at = (1..=room).rev().find(|at| left[*at..].starts_with(text))?;
        captured.push(left[at + text.len()..].to_vec());
        left = &left[..at];
    }
    captured.push(left.to_vec());
    captured.reverse();
    (!left.is_empty()).then_some(captured)
}

/// What the placeholders of a host stand for, if it is this one.
fn host_captured(own: &str, host: &str) -> Option<Vec<Vec<u8>>> {
    if !own.contains(':') {
        return (own == host).then(Vec::new);
    }
    let mut captured = Vec::new();
    let (mut own, mut labels) = (own.split('.'), host.split('.'));
    loop {
        let (own, label) = match (own.next(), labels.next()) {
            (Some(own), Some(label)) => (own, label),
            (None, None) => return Some(captured),
            _ => return None,
        };
        match own.strip_suffix(':') {
            Some(prefix) => {
                let rest = label.strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
                captured.push(rest.as_bytes().to_vec());
            }
            None if own == label => {}
            None => return None,
        }
    }
}

impl Segment {
    /// What a path that fits ends with, at least.
    pub(super) fn end(&self) -> &[u8] {
        match self {
            Self::Literal(bytes) => bytes,
            Self::Name { suffix, .. } | Self::Splat { suffix, .. } => suffix,
            Self::Names { texts } => texts.last().map_or(&b""[..], Vec::as_slice),
        }
    }

    /// Whether one segment of a path may be both; never wrongly `false`.
    fn meets(&self, other: &Segment) -> bool {
        match (self, other) {
            (Self::Literal(own), Self::Literal(other)) => own == other,
            (Self::Literal(own), wild) | (wild, Self::Literal(own)) => {
                wild.add_captured(own, &mut Vec::new()).is_some()
            }
            (Self::Name { prefix, suffix }, Self::Name { prefix: begin, suffix: end }) => {
                (prefix.starts_with(begin) || begin.starts_with(prefix))
                    && (suffix.ends_with(end) || end.ends_with(suffix))
            }
            (Self::Splat { .. } | Self::Names { .. }, _)
            | (_, Self::Splat { .. } | Self::Names { .. }) => true,
        }
    }
}

impl Pattern {
    /// Whether a path may fit both this and these segments; never wrongly `false`.
    ///
    /// # Errors
    /// When the budget does not suffice.
    pub(super) fn meets(
        &self,
        other: &[Segment],
        budget: &mut Budget<'_>,
    ) -> Result<bool, TooMuch> {
        let own = &self.segments;
        budget.spend(1)?;
        if let (Some(last), Some(their)) = (own.last(), other.last())
            && !last.end().ends_with(their.end())
            && !their.end().ends_with(last.end())
        {
            return Ok(false);
        }
        budget.spend((own.len() + 1) * (other.len() + 1))?;
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
        Ok(fits[0][0])
    }

    /// Whether a request may be for the hosts of both.
    pub(super) fn host_meets(&self, other: &Pattern) -> bool {
        match (&self.host, &other.host) {
            (Some(own), Some(other)) if self.one_host() && is_one_host(other) => own == other,
            _ => true,
        }
    }

    /// Whether it names no host or exactly one.
    pub fn one_host(&self) -> bool {
        self.host.as_deref().is_none_or(is_one_host)
    }

    /// The host by which rules are sorted.
    pub(super) fn key_host(&self) -> Option<Box<str>> {
        self.host.as_deref().filter(|host| is_one_host(host)).map(Box::from)
    }

    /// Whether it keeps the bounds, which allow `splats`.
    pub fn is_sound(&self, splats: usize) -> bool {
        let names = |segment: &Segment| match segment {
            Segment::Names { texts } => (3..=limits::RULE_PLACES_MAX + 1).contains(&texts.len()),
            _ => true,
        };
        let own = self.splats();
        self.segments.len() <= limits::RULE_SEGMENTS_MAX
            && own <= splats
            && self.segments.iter().all(names)
            && (own <= 1 || self.segments.iter().all(super::globs::may_be_beside_splats))
    }

    /// Whether the path has wildcards.
    pub fn is_open(&self) -> bool {
        self.segments.iter().any(|segment| !matches!(segment, Segment::Literal(_)))
    }

    /// Number of splats.
    pub(super) fn splats(&self) -> usize {
        self.segments.iter().filter(|s| matches!(s, Segment::Splat { .. })).count()
    }

    /// What comparing it costs beside what other patterns cost.
    pub(super) fn search_work(&self) -> usize {
        let several = self.splats() > 1;
        if several { limits::RULE_SPLATS_WORK * self.segments.len() } else { 0 }
    }

    /// Whether it ends in or holds a splat.
    pub fn has_splat(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Splat { .. }))
    }

    /// What the wildcards stand for, in order, if it is about this path: those of the host first.
    /// Nothing is captured where there are several splats.
    pub fn captured(&self, dialect: Dialect, host: &str, asked: &[&[u8]]) -> Option<Vec<Vec<u8>>> {
        let Some(own) = &self.host else { return self.captured_at_any_host(dialect, asked) };
        let mut captured = host_captured(own, host)?;
        captured.extend(self.captured_at_any_host(dialect, asked)?);
        Some(captured)
    }

    /// As [`Pattern::captured`], whatever the host.
    pub(super) fn captured_at_any_host(
        &self,
        dialect: Dialect,
        asked: &[&[u8]],
    ) -> Option<Vec<Vec<u8>>> {
        let mut captured = Vec::new();
        if self.splats() > 1 {
            return super::globs::fits(&self.segments, asked).then_some(captured);
        }
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
            // `/news/*` is also about `/news` where a final slash makes no difference, and `/a/*/b`
            // about `/a/b`.
            if dialect != Dialect::Netlify || !prefix.is_empty() || !suffix.is_empty() {
                return None;
            }
            captured.push(Vec::new());
            fixed(after, &asked[at..], &mut captured)?;
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
        own.add_captured(asked, captured)?;
    }
    Some(())
}

/// Whether a host has no placeholders.
fn is_one_host(host: &str) -> bool {
    !host.contains(':')
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_placeholders_takes_as_much_as_it_can() {
        let captured = |texts: &[&str], whole: &str| -> Option<Vec<String>> {
            let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
            let all = between_all(&texts, whole.as_bytes())?.into_iter();
            Some(all.map(|own| String::from_utf8(own).unwrap()).collect())
        };
        // As `^([^/]+)-([^/]+)-([^/]+)$` and the like.
        for (texts, whole, expected) in [
            (&["", "-", "-", ""][..], "2026-11-02", Some(&["2026", "11", "02"][..])),
            (&["", "-", "-", ""], "a-b-c-d", Some(&["a-b", "c", "d"])),
            (&["", "-", "-", ""], "a--d", None),
            (&["", "-", "-", ""], "a---d", Some(&["a", "-", "d"])),
            (&["", "", ""], "abc", Some(&["ab", "c"])),
            (&["", "", ""], "a", None),
            (&["x", ".", ".html"], "xa.b.html", Some(&["a", "b"])),
            (&["x", ".", ".html"], "xa.html", None),
            (&["x", ".", ".html"], "x.html", None),
            (&["", "aa", ""], "aaaa", Some(&["a", "a"])),
            (&["", "aa", ""], "aaaaa", Some(&["aa", "a"])),
        ] {
            let expected = expected.map(|all| all.iter().map(|own| (*own).to_owned()).collect());
            assert_eq!(captured(texts, whole), expected, "{texts:?} {whole}");
        }
    }

    #[test]
    fn placeholders_of_hosts_stand_for_a_part_of_a_label() {
        let captured = |own: &str, host: &str| host_captured(own, host).map(|all| all.concat());
        for (own, host, expected) in [
            ("a.example", "a.example", Some("")),
            ("a.example", "b.example", None),
            (":.pages.dev", "blog.pages.dev", Some("blog")),
            (":.pages.dev", "x.blog.pages.dev", None),
            (":.:.pages.dev", "x.blog.pages.dev", Some("xblog")),
            ("pr-:.example", "pr-7.example", Some("7")),
            ("pr-:.example", "pr-.example", None),
            ("pr-:.example", "7.example", None),
        ] {
            let expected = expected.map(|own| own.as_bytes().to_vec());
            assert_eq!(captured(own, host), expected, "{own} {host}");
        }
    }
}
