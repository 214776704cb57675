//! What the blocks of `_headers` that fit a request make of the headers of its answer.
//!
//! Blocks are gone through without making any value: first what is sent is known, with how long it
//! will be, and only that is made.

use super::decide::{Question, keys};
use super::template::{Captures, Template};
use super::{HeaderChange, Rules, pattern};
use crate::limits;
use crate::site::Dialect;

/// What `_headers` says about a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEffect {
    /// Names in lower case with values; `None`: not to be sent.
    pub headers: Vec<(String, Option<String>)>,
    /// The rules that were about it, by their numbers in the set.
    pub rules: Vec<u32>,
}

impl HeaderEffect {
    /// What holds of it for the page that says that something is missing: that page has a type of
    /// its own, and may be wrong as soon as the next deploy, whatever is said of the path.
    #[must_use]
    pub fn of_missing(&self) -> HeaderEffect {
        let own = |name: &str| ["cache-control", "content-type"].contains(&name);
        let headers = self.headers.iter().filter(|(name, _)| !own(name)).cloned().collect();
        HeaderEffect { headers, rules: self.rules.clone() }
    }
}

/// A header that rules are about, before its value is made.
struct Ruled<'r> {
    name: &'r str,
    /// What is joined to its value, each with what its block captured; `None`: not to be sent.
    parts: Option<Vec<(&'r Template, usize)>>,
    /// Bytes of the value.
    bytes: usize,
}

/// The headers of one answer.
#[derive(Default)]
struct Ruling<'r> {
    headers: Vec<Ruled<'r>>,
    /// What each block captured.
    captured: Vec<Captures>,
    /// Bytes of all names and values.
    bytes: usize,
}

/// What stands between values of one header.
const JOINT: &str = ", ";

impl Question<'_> {
    /// What `_headers` says about the answer, when that is a file.
    pub fn headers(&self) -> HeaderEffect {
        self.rules.headers_at((&self.facts.path, self.facts.directory), &self.facts.host)
    }
}

impl Rules {
    /// What `_headers` says about a file at a path (decoded, without a slash at its ends) and host.
    pub(super) fn headers_at(&self, (path, directory): (&[u8], bool), host: &str) -> HeaderEffect {
        let set = &self.set;
        let mut numbers = Vec::new();
        if set.headers.is_empty() {
            return HeaderEffect::default();
        }
        let asked = pattern::segments(set.dialect, path, directory);
        let keys = keys(host, &[]);
        let mut ruling = Ruling::default();
        for number in self.headers.candidates(&asked, &keys) {
            let Some(rule) = set.headers.get(number as usize) else { continue };
            let captured = rule.source.captured(set.dialect, host, &asked);
            let Some(captured) = captured else { continue };
            numbers.push(number);
            ruling.captured.push(Captures::new(captured));
            // What a block takes away is what stood before it, wherever the line is.
            for change in &rule.changes {
                if let HeaderChange::Remove { name } = change {
                    ruling.remove(name);
                }
            }
            for change in &rule.changes {
                if let HeaderChange::Set { name, value } = change {
                    ruling.set(name, value, set.dialect);
                }
            }
        }
        HeaderEffect { headers: ruling.made(), rules: numbers }
    }
}

impl<'r> Ruling<'r> {
    /// One more value for a header, made of what the last block captured; left out when that makes
    /// it or all of them too long.
    fn set(&mut self, name: &'r str, value: &'r Template, dialect: Dialect) {
        let block = self.captured.len().saturating_sub(1);
        let own = self.captured.get(block).map_or(0, |captured| value.value_bytes(captured));
        let room = self.headers.len() < limits::RULED_HEADERS_MAX;
        let before = self.headers.iter_mut().find(|header| header.name == name);
        let had = before.as_ref().map_or(0, |header| name.len() + header.bytes);
        // Pages adds up what several rules say; in Netlify's dialect the last one counts.
        let joins = dialect == Dialect::Pages
            && before.as_ref().is_some_and(|header| header.parts.is_some());
        let joined = before.as_ref().filter(|_| joins);
        let bytes = own + joined.map_or(0, |header| header.bytes + JOINT.len());
        let all = self.bytes - had + name.len() + bytes;
        if bytes > limits::LOCATION_BYTES_MAX || all > limits::RULED_HEADERS_BYTES_MAX {
            return;
        }
        let part = (value, block);
        match before {
            Some(header) => {
                header.bytes = bytes;
                match &mut header.parts {
                    Some(parts) if joins => parts.push(part),
                    parts => *parts = Some(vec![part]),
                }
            }
            None if room => {
                self.headers.push(Ruled { name, parts: Some(vec![part]), bytes });
            }
            None => return,
        }
        self.bytes = all;
    }

    fn remove(&mut self, name: &'r str) {
        if let Some(header) = self.headers.iter_mut().find(|header| header.name == name) {
            self.bytes -= header.bytes;
            (header.parts, header.bytes) = (None, 0);
            return;
        }
        let all = self.bytes + name.len();
        let room = self.headers.len() < limits::RULED_HEADERS_MAX;
        if room && all <= limits::RULED_HEADERS_BYTES_MAX {
            self.headers.push(Ruled { name, parts: None, bytes: 0 });
            self.bytes = all;
        }
    }

    /// The headers with their values.
    fn made(&self) -> Vec<(String, Option<String>)> {
        let value = |header: &Ruled<'_>| {
            let parts = header.parts.as_ref()?;
            let mut value = String::with_capacity(header.bytes);
            for (number, (template, block)) in parts.iter().enumerate() {
                if number > 0 {
                    value.push_str(JOINT);
                }
                template.add_value(self.captured.get(*block)?, &mut value);
            }
            Some(value)
        };
        let headers = self.headers.iter();
        headers.map(|header| (header.name.to_owned(), value(header))).collect()
    }
}
