//! From `_redirects` and `_headers` to rules, or to every error with its file and line.
//!
//! Syntax that is not understood is an error, never left out: a rule that silently does nothing is
//! found by visitors.

mod headers;
mod redirects;
mod source;

use std::fmt;

use super::{HEADERS_FILE, REDIRECTS_FILE, RuleSet};
use crate::limits;
use crate::site::SiteSettings;

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
    /// How many more there are.
    pub more: usize,
}

impl Faults {
    fn add(&mut self, file: &'static str, line: u32, reason: String) {
        if self.told.len() < limits::RULE_FAULTS_TOLD {
            self.told.push(Fault { file, line, reason });
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.told.iter().map(Fault::to_string).collect();
        f.write_str(&lines.join("\n"))?;
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
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
        for (line, text) in lines(bytes, REDIRECTS_FILE, &mut faults) {
            match redirects::line(text, line, set.dialect) {
                Ok(rule) => set.redirects.extend(rule),
                Err(reason) => faults.add(REDIRECTS_FILE, line, reason),
            }
        }
    }
    if let Some(bytes) = sources.headers {
        let lines = lines(bytes, HEADERS_FILE, &mut faults);
        set.headers = headers::blocks(&lines, set.dialect, &mut faults);
    }
    for (file, count) in [(REDIRECTS_FILE, set.redirects.len()), (HEADERS_FILE, set.headers.len())]
    {
        if count > limits::RULES_MAX {
            let reason = format!("{count} rules are too many: at most {}", limits::RULES_MAX);
            faults.add(file, 0, reason);
        }
    }
    if faults.told.is_empty() { Ok(set) } else { Err(faults) }
}

/// The lines of a file with their numbers, as text. What is no text is told and left out.
fn lines<'a>(bytes: &'a [u8], file: &'static str, faults: &mut Faults) -> Vec<(u32, &'a str)> {
    if bytes.len() > limits::RULES_FILE_BYTES_MAX {
        let max = limits::RULES_FILE_BYTES_MAX;
        faults.add(file, 0, format!("{} bytes are too many: at most {max}", bytes.len()));
        return Vec::new();
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut lines = Vec::new();
    for (number, line) in (1_u32..).zip(bytes.split(|byte| *byte == b'\n')) {
        let Ok(text) = std::str::from_utf8(line) else {
            faults.add(file, number, "this line is not UTF-8".to_owned());
            continue;
        };
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.len() > limits::RULES_LINE_BYTES_MAX {
            let max = limits::RULES_LINE_BYTES_MAX;
            faults.add(file, number, format!("this line is too long: at most {max} bytes"));
        } else if text.chars().any(|c| c.is_control() && c != '\t') {
            faults.add(file, number, "this line holds a control character".to_owned());
        } else {
            lines.push((number, text));
        }
    }
    lines
}
