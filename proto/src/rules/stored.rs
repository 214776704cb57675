//! Rules as they are stored with a deploy: one versioned value, cut into chunks like any content.
//!
//! The client makes it for a deploy, the master for a live site, and the same rules come to the same
//! chunks; an edge reads it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::{HeaderChange, HeaderRule, Redirect, RuleSet, Rules, parse};
use crate::content::Extent;
use crate::{ChunkId, Content, Malformed, limits};

/// What is stored. Variant numbers are stable on disk: only append.
#[derive(Serialize, Deserialize)]
enum Stored {
    V1(RuleSet),
    /// Hosts may have placeholders, which readers of the first kind would take for text.
    V2(RuleSet),
}

/// Compiled rules as chunks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoredRules {
    /// What the manifest's root says of them; `None` for a deploy without any.
    pub content: Option<Content>,
    /// The chunks it is made of.
    pub chunks: Vec<(ChunkId, Bytes)>,
}

impl RuleSet {
    /// The rules as bytes.
    ///
    /// # Errors
    /// When they are longer than `limits::RULES_BYTES_MAX`.
    pub fn encode(self) -> Result<Vec<u8>, Malformed> {
        let plain = self.headers.iter().all(|rule| rule.source.one_host());
        let stored = if plain { Stored::V1(self) } else { Stored::V2(self) };
        let bytes = crate::encode(&stored);
        if bytes.len() > limits::RULES_BYTES_MAX {
            let reason = format!(
                "the rules take {} bytes, more than the {} there may be: use placeholders and \
                 splats for rules that are alike",
                bytes.len(),
                limits::RULES_BYTES_MAX
            );
            return Err(Malformed { reason });
        }
        Ok(bytes)
    }

    /// The rules as chunks of at most `chunk_bytes`; none where a deploy without any does the same.
    ///
    /// # Errors
    /// As [`RuleSet::encode`].
    pub fn store(self, chunk_bytes: u32) -> Result<StoredRules, Malformed> {
        if self.is_default() {
            return Ok(StoredRules::default());
        }
        let chunk_bytes = chunk_bytes.max(limits::CHUNK_BYTES_MIN) as usize;
        let bytes = Bytes::from(self.encode()?);
        let mut stored = StoredRules::default();
        let mut extents = Vec::new();
        let mut from = 0;
        while from < bytes.len() {
            let part = bytes.slice(from..bytes.len().min(from + chunk_bytes));
            from += part.len();
            let id = ChunkId::of(&part);
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            extents.push(Extent { id: Some(id), len });
            stored.chunks.push((id, part));
        }
        stored.content = Some(Content::from_extents(extents));
        Ok(stored)
    }
}

impl Rules {
    /// Reads what [`RuleSet::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not rules, or out of bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let bad = |reason: String| Err(Malformed { reason: format!("rules: {reason}") });
        if bytes.len() > limits::RULES_BYTES_MAX {
            return bad("too long".to_owned());
        }
        let (Stored::V1(set) | Stored::V2(set)) = crate::decode(bytes)?;
        let segments = |patterns: &mut dyn Iterator<Item = &Pattern>| {
            patterns.map(|pattern| pattern.segments.len()).sum::<usize>()
        };
        let segments = [
            segments(&mut set.redirects.iter().map(|rule| &rule.source)),
            segments(&mut set.headers.iter().map(|rule| &rule.source)),
        ];
        let count = set.redirects.len().max(set.headers.len());
        if count > limits::RULES_MAX || segments.iter().max() > Some(&limits::RULES_SEGMENTS_MAX) {
            return bad(format!("{count} of one kind, with {segments:?} segments"));
        }
        let redirect = |rule: &Redirect| {
            let known = parse::STATUSES.contains(&rule.status);
            let few = rule.languages.len().max(rule.cookies.len()) <= limits::RULE_CONDITIONS_MAX;
            let sound = rule.source.is_sound(1) && rule.target.is_sound() && rule.source.one_host();
            known && few && sound && rule.query.len() <= limits::RULE_WANTED_MAX
        };
        let change = |change: &HeaderChange| match change {
            HeaderChange::Set { name, value } => parse::may_set(name) && value.is_sound(),
            HeaderChange::Remove { name } => parse::may_set(name),
        };
        let header = |rule: &HeaderRule| {
            let few = rule.changes.len() <= limits::RULE_CHANGES_MAX;
            let splats = limits::RULE_SPLATS_MAX;
            few && rule.source.is_sound(splats) && rule.changes.iter().all(change)
        };
        if !set.redirects.iter().all(redirect) || !set.headers.iter().all(header) {
            return bad("a rule out of bounds".to_owned());
        }
        let rules = Self::new(set);
        if rules.work().into_iter().any(|(work, max)| work > max) {
            return bad("a request could cost too much".to_owned());
        }
        Ok(rules)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::rules::parse::{Sources, parse};
    use crate::site::SiteSettings;

    #[test]
    fn many_rules_are_cut_into_chunks_and_come_back() {
        let text: String = (0..100_000)
            .map(|n| format!("/articles/2019/{n}-a-title /blog/{n}-a-title 301\n"))
            .collect();
        let sources = Sources { redirects: Some(text.as_bytes()), headers: None };
        let set = parse(sources, &SiteSettings::default()).unwrap();
        let stored = set.clone().store(1 << 20).unwrap();
        let content = stored.content.unwrap();
        assert!(stored.chunks.len() > 1 && matches!(content, Content::Extents(_)));
        let bytes: Vec<u8> = stored.chunks.iter().flat_map(|(_, part)| part.to_vec()).collect();
        assert_eq!(content.size(), bytes.len() as u64);
        assert_eq!(Rules::decode(&bytes).unwrap().set(), &set);
    }

    #[test]
    fn what_no_parser_lets_pass_is_not_read_either() {
        let sources = Sources { redirects: Some(b"/a /b"), headers: Some(b"/*\n  X: y") };
        let set = parse(sources, &SiteSettings::default()).unwrap();
        assert!(Rules::decode(&set.clone().encode().unwrap()).is_ok());
        let mut status = set.clone();
        status.redirects[0].status = 304;
        let mut name = set.clone();
        name.headers[0].changes = vec![HeaderChange::Remove { name: "content-length".to_owned() }];
        let mut upper = set.clone();
        upper.headers[0].changes = vec![HeaderChange::Remove { name: "X".to_owned() }];
        let mut many = set;
        many.redirects = vec![many.redirects[0].clone(); limits::RULE_WORK_MAX + 1];
        for bad in [status, name, upper, many] {
            assert!(Rules::decode(&bad.encode().unwrap()).is_err());
        }
    }

    #[test]
    fn a_site_without_rules_has_none() {
        assert!(RuleSet::default().store(1 << 20).unwrap().content.is_none());
        let spa = RuleSet { spa: true, ..RuleSet::default() };
        assert!(spa.store(1 << 20).unwrap().content.is_some());
    }
}
