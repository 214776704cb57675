//! How a violated rule is told: what rule, where, and what to do instead.

use std::fmt::Write as _;

/// The violations of one rule.
pub(crate) struct Report {
    rule: String,
    instead: String,
    found: Vec<String>,
}

impl Report {
    pub(crate) fn new(rule: &str, instead: &str) -> Self {
        Self { rule: rule.to_owned(), instead: instead.to_owned(), found: Vec::new() }
    }

    pub(crate) fn add(&mut self, place: &str, what: &str) {
        self.found.push(format!("{place}: {what}"));
    }

    /// Fails the test when there is anything to tell.
    pub(crate) fn finish(self) {
        Self::finish_all(vec![self]);
    }

    /// Fails the test when one of the rules was violated, and tells them all.
    pub(crate) fn finish_all(reports: Vec<Self>) {
        let mut text = String::new();
        for report in reports.iter().filter(|report| !report.found.is_empty()) {
            writeln!(text, "\nrule: {}", report.rule).expect(WRITES);
            for line in &report.found {
                writeln!(text, "  at {line}").expect(WRITES);
            }
            writeln!(text, "instead: {}", report.instead).expect(WRITES);
        }
        assert!(text.is_empty(), "{text}");
    }
}

const WRITES: &str = "a String takes every write";
