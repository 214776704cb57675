//! The rules of a deploy: redirects, headers, clean URLs, single-page applications.
//!
//! `_redirects` and `_headers` are read by [`parse`] when a site is deployed, kept as a [`RuleSet`]
//! that the manifest's root refers to, and looked up by [`decide`]: from a path and what is known
//! of the request to what answers it. Everything here is pure, so that an edge and
//! `atoll redirects test` decide alike.
//!
//! What this module does not do: it reads no files and no manifests. [`decide::Question`] says
//! which paths it must know about, and whoever asks looks them up.

pub mod answers;
pub mod bearers;
pub mod budget;
pub mod decide;
pub mod effect;
mod globs;
pub mod html;
pub mod parse;
pub mod pattern;
pub mod request;
pub mod stored;
pub mod template;
pub mod trie;

use serde::{Deserialize, Serialize};

use crate::site::{Dialect, HtmlHandling, SiteSettings};
use crate::{limits, name::RULE_FILES};
use pattern::Pattern;
use template::Template;
use trie::{Key, Trie};

/// The file of redirects, at the top of a site.
pub const REDIRECTS_FILE: &str = "_redirects";
/// The file of headers, at the top of a site.
pub const HEADERS_FILE: &str = "_headers";

/// Whether this path within a site is a file of rules, which is never served.
pub fn is_rule_file(path: &[u8]) -> bool {
    RULE_FILES.contains(&path)
}

/// All rules of a deploy, in the order of their files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuleSet {
    /// How they were read, and how paths are compared.
    pub dialect: Dialect,
    /// How URLs of pages look.
    pub html: HtmlHandling,
    /// Whether navigations to paths that do not exist get `/index.html`.
    pub spa: bool,
    /// Of `_redirects`.
    pub redirects: Vec<Redirect>,
    /// Of `_headers`.
    pub headers: Vec<HeaderRule>,
}

/// One line of `_redirects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Where it is written; counted from 1.
    pub line: u32,
    /// Which paths it is about.
    pub source: Pattern,
    /// Parameters that the query must have.
    pub query: Vec<(String, Wanted)>,
    /// Where it leads.
    pub target: Template,
    /// 301, 302, 303, 307, 308: a redirect. 200: the target's file. 404, 410, 451: the target's
    /// file with this status.
    pub status: u16,
    /// Whether it applies although a file exists at the path.
    pub force: bool,
    /// Only for visitors who prefer one of these languages to all others; in lower case. Empty: for
    /// all.
    pub languages: Vec<String>,
    /// Only for visitors who send one of these cookies. Empty: for all.
    pub cookies: Vec<String>,
}

/// What a parameter of the query must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// This, decoded.
    Exactly(String),
    /// Anything that is not empty; the template may use it.
    Any,
}

/// One block of `_headers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderRule {
    /// Where it begins; counted from 1.
    pub line: u32,
    /// Which paths it is about.
    pub source: Pattern,
    /// What it does, in order.
    pub changes: Vec<HeaderChange>,
}

/// One line of a block of `_headers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeaderChange {
    /// Send it with this value.
    Set {
        /// Its name in lower case.
        name: String,
        /// Its value.
        value: Template,
    },
    /// Send it no more.
    Remove {
        /// Its name in lower case.
        name: String,
    },
}

impl RuleSet {
    /// No rules, but these settings.
    pub fn of_settings(settings: &SiteSettings) -> Self {
        Self {
            dialect: settings.dialect,
            html: settings.html_handling,
            spa: settings.spa,
            ..Self::default()
        }
    }

    /// Whether a deploy without any stored rules behaves the same.
    pub fn is_default(&self) -> bool {
        *self == Self { dialect: self.dialect, ..Self::default() }
    }
}

/// Rules that can be asked: decoded once, then used for every request of a deploy.
#[derive(Debug, Default)]
pub struct Rules {
    set: RuleSet,
    redirects: Trie,
    headers: Trie,
    look_at_visitors: bool,
}

/// What one rule takes in memory, about: itself and its vectors.
pub const RULE_BYTES: usize = 400;

impl Rules {
    /// Makes rules ready to be asked.
    pub fn new(set: RuleSet) -> Self {
        let mut redirects = Trie::default();
        for (number, rule) in (0_u32..).zip(&set.redirects) {
            redirects.insert(&rule.source, rule.key(), number, 1);
        }
        let mut headers = Trie::default();
        for (number, rule) in (0_u32..).zip(&set.headers) {
            let key = Key { host: rule.source.key_host(), parameter: None };
            let changes = rule.changes.len().max(1);
            headers.insert(&rule.source, key, number, rule.source.search_work() + changes);
        }
        let looks = |rule: &Redirect| !rule.languages.is_empty() || !rule.cookies.is_empty();
        let look_at_visitors = set.redirects.iter().any(looks);
        Self { set, redirects, headers, look_at_visitors }
    }

    /// The rules themselves.
    pub fn set(&self) -> &RuleSet {
        &self.set
    }

    /// Whether some look at [`request::Visitor`]; if none does, it need not be filled in.
    pub fn look_at_visitors(&self) -> bool {
        self.look_at_visitors
    }

    /// What they take in memory beside their text, in bytes, about.
    pub fn memory_bytes(&self) -> usize {
        let rules = self.set.redirects.len() + self.set.headers.len();
        self.redirects.memory_bytes() + self.headers.memory_bytes() + rules * RULE_BYTES
    }

    /// The most that any request can cost, of redirects and of headers, with the limit of each.
    pub fn work(&self) -> [(usize, usize); 2] {
        [
            (self.redirects.work(), limits::RULE_WORK_MAX),
            (self.headers.work(), limits::HEADER_RULE_WORK_MAX),
        ]
    }
}

impl Redirect {
    fn key(&self) -> Key {
        let parameter = self.query.iter().find_map(|(name, wanted)| match wanted {
            Wanted::Exactly(value) => Some((name.as_bytes().into(), value.as_bytes().into())),
            Wanted::Any => None,
        });
        Key { host: self.source.key_host(), parameter }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "dialect_tests.rs"]
mod dialect_tests;
