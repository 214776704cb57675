//! From `_redirects` and `_headers` to rules, or to every error with its file and line.
//!
//! Syntax that is not understood is an error, never left out: a rule that silently does nothing is
//! found by visitors.

mod headers;
mod redirects;
mod source;

use std::fmt;

use super::pattern::Pattern;
use super::{HEADERS_FILE, HeaderRule, REDIRECTS_FILE, Redirect, RuleSet, Rules};
use crate::limits;
use crate::site::{Dialect, SiteSettings};

/// The statuses that a rule may have.
pub(super) const STATUSES: [u16; 9] = [200, 301, 302, 303, 307, 308, 404, 410, 451];

/// Whether a rule may set or remove the header of this name, which is in lower case.
pub(super) fn may_set(name: &str) -> bool {
    headers::header_name(name).is_ok_and(|own| own == name)
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In this file.
    pub file: &'static str,
    /// Counted from 1; 0 when the file as a whole is wrong.
    pub line: u32,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.reason),
            line => write!(f, "{}:{line}: {}", self.file, self.reason),
        }
    }
}

/// All errors of both files; the first `limits::RULE_FAULTS_TOLD` in full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults {
    /// In the order of files and lines.
    pub told: Vec<Fault>,
    /// How many more there are. When there are very many, the rest is not read.
    pub more: usize,
    /// How many of all are nothing but too much of something.
    over: usize,
}

/// Errors that are counted.
const COUNTED_MAX: usize = 1000;

impl Faults {
    /// Whether there are so many that it is not worth reading on.
    fn full(&self) -> bool {
        self.more >= COUNTED_MAX
    }

    /// Whether nothing is wrong but that there is more than there may be.
    pub fn over_limit(&self) -> bool {
        self.over > 0 && self.over == self.told.len() + self.more
    }

    /// As [`Faults::add`], for too much of something.
    fn add_over(&mut self, file: &'static str, line: u32, reason: String) {
        self.over += 1;
        self.add(file, line, reason);
    }

    fn add(&mut self, file: &'static str, line: u32, mut reason: String) {
        if self.told.len() == limits::RULE_FAULTS_TOLD {
            self.more += 1;
            return;
        }
        // What is quoted at the beginning may be a long line.
        let max = limits::RULE_FAULT_BYTES_MAX;
        if reason.len() > max {
            let boundary = |from: usize| (from..).find(|at| reason.is_char_boundary(*at));
            let (head, tail) = (boundary(max / 4), boundary(reason.len() - max * 3 / 4));
            let (head, tail) = (head.unwrap_or_default(), tail.unwrap_or_default());
            reason.replace_range(head..tail, "…");
        }
        self.told.push(Fault { file, line, reason });
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.told.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))?;
        match self.more {
            0 => {}
            COUNTED_MAX.. => f.write_str("\nand very many more")?,
            more => write!(f, "\nand {more} more")?,
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// The two files of a site, where it has them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sources<'a> {
    /// Bytes of `_redirects`.
    pub redirects: Option<&'a [u8]>,
    /// Bytes of `_headers`.
    pub headers: Option<&'a [u8]>,
}

/// Reads both files.
///
/// # Errors
/// With all that is wrong in them.
pub fn parse(sources: Sources<'_>, settings: &SiteSettings) -> Result<RuleSet, Faults> {
    let mut set = RuleSet::of_settings(settings);
    let mut faults = Faults::default();
    if let Some(bytes) = sources.redirects {
        set.redirects = all_redirects(bytes, &set, &mut faults);
    }
    if let Some(bytes) = sources.headers {
        set.headers = all_headers(bytes, set.dialect, &mut faults);
    }
    if !faults.told.is_empty() {
        return Err(faults);
    }
    let rules = Rules::new(set);
    for (file, (work, max)) in [REDIRECTS_FILE, HEADERS_FILE].into_iter().zip(rules.work()) {
        if work > max {
            let reason = format!(
                "a single request could take {work} steps through these rules, more than {max}: \
                 rules with placeholders or `*` that fit the same paths are too many, or change \
                 too many headers"
            );
            faults.add_over(file, 0, reason);
        }
    }
    if faults.told.is_empty() { Ok(rules.set) } else { Err(faults) }
}

fn all_redirects(bytes: &[u8], set: &RuleSet, faults: &mut Faults) -> Vec<Redirect> {
    let mut rules = Vec::new();
    let mut room = Room::default();
    for line in lines(bytes) {
        if faults.full() {
            break;
        }
        let (number, text) = match line {
            Ok(line) => line,
            Err(bad) => {
                bad.tell(REDIRECTS_FILE, faults);
                continue;
            }
        };
        match redirects::line(text, number, set.dialect, set.html) {
            Ok(None) => {}
            Ok(Some(rule)) => match room.take(&rule.source) {
                Ok(()) => rules.push(rule),
                // The rest would only be told the same.
                Err(reason) => {
                    faults.add_over(REDIRECTS_FILE, number, reason);
                    break;
                }
            },
            Err(reason) => faults.add(REDIRECTS_FILE, number, reason),
        }
    }
    rules
}

fn all_headers(bytes: &[u8], dialect: Dialect, faults: &mut Faults) -> Vec<HeaderRule> {
    let mut blocks = headers::Blocks::new(dialect);
    for line in lines(bytes) {
        match line {
            Ok((number, text)) => {
                if !blocks.line(number, text, faults) || faults.full() {
                    break;
                }
            }
            Err(bad) => bad.tell(HEADERS_FILE, faults),
        }
    }
    blocks.finish(faults)
}

/// How many rules there were so far.
#[derive(Default)]
struct Room {
    rules: usize,
    segments: usize,
}

impl Room {
    /// Counts one more.
    fn take(&mut self, source: &Pattern) -> Result<(), String> {
        self.rules += 1;
        self.segments += source.segments.len();
        let (rules, segments) = (limits::RULES_MAX, limits::RULES_SEGMENTS_MAX);
        if self.rules > rules {
            return Err(format!("there are too many rules: at most {rules}"));
        }
        if self.segments > segments {
            return Err(format!("the paths have too many segments in all: at most {segments}"));
        }
        Ok(())
    }
}

/// What is wrong with a line as such.
struct BadLine {
    number: u32,
    reason: String,
    /// Whether it is only too long.
    over: bool,
}

impl BadLine {
    fn tell(self, file: &'static str, faults: &mut Faults) {
        match self.over {
            true => faults.add_over(file, self.number, self.reason),
            false => faults.add(file, self.number, self.reason),
        }
    }
}

/// The lines of a file with their numbers, as text, or what is wrong with them.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Result<(u32, &str), BadLine>> {
    let max = limits::RULES_FILE_BYTES_MAX;
    let long = (bytes.len() > max).then(|| {
        let reason = format!("{} bytes are too many: at most {max}", bytes.len());
        Err(BadLine { number: 0, reason, over: true })
    });
    let bytes = if long.is_some() { &b""[..] } else { bytes };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = (1_u32..).zip(bytes.split(|byte| *byte == b'\n'));
    long.into_iter().chain(lines.map(|(number, line)| {
        let bad = |reason: String, over: bool| Err(BadLine { number, reason, over });
        let Ok(text) = std::str::from_utf8(line) else {
            return bad("this line is not UTF-8".to_owned(), false);
        };
        let text = text.strip_suffix('\r').unwrap_or(text);
        let max = limits::RULES_LINE_BYTES_MAX;
        if text.len() > max {
            return bad(format!("this line is too long: at most {max} bytes"), true);
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return bad("this line holds a control character".to_owned(), false);
        }
        Ok((number, text))
    }))
}
