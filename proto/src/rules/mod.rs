//! The rules of a deploy: redirects, headers, clean URLs, single-page applications.
//!
//! `_redirects` and `_headers` are read by [`parse`] when a site is deployed, kept as a [`RuleSet`]
//! that the manifest's root refers to, and looked up by [`decide`]: from a path and what is known
//! of the request to what answers it. Everything here is pure, so that an edge and
//! `atoll redirects test` decide alike.
//!
//! What this module does not do: it reads no files and no manifests. [`decide::Question`] says
//! which paths it must know about, and whoever asks looks them up.

pub mod decide;
pub mod html;
pub mod parse;
pub mod pattern;
pub mod request;
pub mod template;
pub mod trie;

use serde::{Deserialize, Serialize};

use crate::site::{Dialect, HtmlHandling, SiteSettings};
use crate::{Malformed, limits};
use pattern::Pattern;
use template::Template;
use trie::Trie;

/// The file of redirects, at the top of a site.
pub const REDIRECTS_FILE: &str = "_redirects";
/// The file of headers, at the top of a site.
pub const HEADERS_FILE: &str = "_headers";

/// Whether this path within a site is a file of rules, which is never served.
pub fn is_rule_file(path: &[u8]) -> bool {
    path == REDIRECTS_FILE.as_bytes() || path == HEADERS_FILE.as_bytes()
}

/// What is stored. Variant numbers are stable on disk: only append.
#[derive(Serialize, Deserialize)]
enum Stored {
    V1(RuleSet),
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

    /// The rules as they are stored.
    ///
    /// # Errors
    /// When they are longer than `limits::RULES_BYTES_MAX`.
    pub fn encode(self) -> Result<Vec<u8>, Malformed> {
        let bytes = crate::encode(&Stored::V1(self));
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
}

/// Rules that can be asked: decoded once, then used for every request of a deploy.
#[derive(Debug, Default)]
pub struct Rules {
    set: RuleSet,
    redirects: Trie,
    headers: Trie,
}

impl Rules {
    /// Makes rules ready to be asked.
    pub fn new(set: RuleSet) -> Self {
        let mut redirects = Trie::default();
        for (number, rule) in (0_u32..).zip(&set.redirects) {
            redirects.insert(&rule.source, number);
        }
        let mut headers = Trie::default();
        for (number, rule) in (0_u32..).zip(&set.headers) {
            headers.insert(&rule.source, number);
        }
        Self { set, redirects, headers }
    }

    /// Reads what [`RuleSet::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are not rules.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > limits::RULES_BYTES_MAX {
            return Err(Malformed { reason: "rules: too long".to_owned() });
        }
        let Stored::V1(set) = crate::decode(bytes)?;
        let count = set.redirects.len().max(set.headers.len());
        if count > limits::RULES_MAX {
            return Err(Malformed { reason: format!("rules: {count} of one kind") });
        }
        let redirect = |rule: &Redirect| rule.source.is_sound() && rule.target.is_sound();
        let change = |change: &HeaderChange| match change {
            HeaderChange::Set { value, .. } => value.is_sound(),
            HeaderChange::Remove { .. } => true,
        };
        let header = |rule: &HeaderRule| rule.source.is_sound() && rule.changes.iter().all(change);
        if !set.redirects.iter().all(redirect) || !set.headers.iter().all(header) {
            return Err(Malformed { reason: "rules: a rule out of bounds".to_owned() });
        }
        Ok(Self::new(set))
    }

    /// The rules themselves.
    pub fn set(&self) -> &RuleSet {
        &self.set
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
