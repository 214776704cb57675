//! From a path and what is known of the request to what answers it.
//!
//! A [`Question`] is made once for a request; [`Question::decide`] is called with what is known of
//! the site's files, and names the path it must know about next, until it has decided. So the same
//! function serves an edge, which looks paths up in manifest pages, and a tool that has a directory.

use super::html::{self, Resolved};
use super::request::{Facts, is_asset};
use super::template::{decode, encode};
use super::{HeaderChange, Redirect, Rules, Wanted, is_rule_file, pattern};
use crate::limits;
use crate::site::Dialect;

/// The status of redirects to canonical URLs. Temporary: another mode or another file would turn
/// ones that browsers keep for ever into circles.
pub const CANONICAL_STATUS: u16 = 307;

/// Directories that are searched for a `404.html`, counted from the site's root.
const NOT_FOUND_DEPTH_MAX: usize = 32;

/// What is known of a site's files.
pub trait Lookups {
    /// Whether there is a file at this path; `None` while that is not known.
    fn exists(&self, path: &[u8]) -> Option<bool>;
}

/// A path that must be looked up before there is a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need(pub Vec<u8>);

/// What answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The rule of `_redirects` that decided, by its number in the set.
    pub rule: Option<u32>,
    /// What it came to.
    pub outcome: Outcome,
}

/// What a decision came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This file, which exists.
    File {
        /// Its path within the site.
        path: Vec<u8>,
        /// 200, or what a rule says.
        status: u16,
    },
    /// Another URL.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// The value of `Location`.
        location: String,
    },
    /// Nothing is there.
    NotFound {
        /// 404, or what a rule says.
        status: u16,
        /// The site's own page that says so, for who has a use for a page.
        page: Option<Vec<u8>>,
    },
}

/// What `_headers` says about a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEffect {
    /// Names in lower case with values; `None`: not to be sent.
    pub headers: Vec<(String, Option<String>)>,
    /// The rules that were about it, by their numbers in the set.
    pub rules: Vec<u32>,
}

/// A rule of `_redirects` whose path and query fit, with what it captured.
struct Match<'r> {
    number: u32,
    rule: &'r Redirect,
    captured: Vec<Vec<u8>>,
}

/// A request that is asked about.
pub struct Question<'r> {
    rules: &'r Rules,
    facts: Facts,
    matches: Vec<Match<'r>>,
}

impl<'r> Question<'r> {
    /// Finds the rules that fit.
    pub fn new(rules: &'r Rules, facts: Facts) -> Self {
        let dialect = rules.set.dialect;
        let asked = pattern::segments(dialect, &facts.path, facts.directory);
        let mut matches = Vec::new();
        if !rules.set.redirects.is_empty() {
            let parameters = parameters(facts.query.as_deref().unwrap_or_default());
            for number in rules.redirects.candidates(&asked) {
                let Some(rule) = rules.set.redirects.get(number as usize) else { continue };
                let captured = rule.source.captured(dialect, &facts.host, &asked);
                let Some(mut captured) = captured else { continue };
                if matches.len() == limits::RULE_MATCHES_MAX {
                    break;
                }
                if take(rule, &parameters, &mut captured) {
                    matches.push(Match { number, rule, captured });
                }
            }
        }
        Self { rules, facts, matches }
    }

    /// What answers the request, as far as `known` goes.
    ///
    /// # Errors
    /// With the path to look up next, when what is known does not suffice.
    pub fn decide(&self, known: &impl Lookups) -> Result<Decision, Need> {
        let mut exists = |path: &[u8]| {
            if is_rule_file(path) {
                return Ok(false);
            }
            known.exists(path).ok_or_else(|| Need(path.to_vec()))
        };
        let set = &self.rules.set;
        let (path, directory) = (&self.facts.path, self.facts.directory);
        let mut own = None;
        for found in &self.matches {
            if set.dialect == Dialect::Netlify && !found.rule.force {
                if own.is_none() {
                    own = Some(html::resolve(set.html, path, directory, &mut exists)?);
                }
                // A file that exists comes before the rule.
                if matches!(own, Some(Some(_))) {
                    continue;
                }
            }
            if let Some(outcome) = self.apply(found, &mut exists)? {
                return Ok(Decision { rule: Some(found.number), outcome });
            }
        }
        let own = match own {
            Some(own) => own,
            None => html::resolve(set.html, path, directory, &mut exists)?,
        };
        let outcome = match own {
            Some(Resolved::File(path)) => Outcome::File { path, status: 200 },
            Some(Resolved::Moved { path, directory }) => self.moved(&path, directory),
            None => self.missing(404, set.spa, &mut exists)?,
        };
        Ok(Decision { rule: None, outcome })
    }

    /// What a rule that fits comes to; `None` when it does not apply after all.
    fn apply(
        &self,
        found: &Match<'_>,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<Option<Outcome>, Need> {
        let rule = found.rule;
        let url = rule.target.url(&found.captured);
        if (301..=308).contains(&rule.status) {
            let location = self.with_query(rule, url);
            if self.is_own(&location) || location.len() > limits::LOCATION_BYTES_MAX {
                return Ok(None);
            }
            return Ok(Some(Outcome::Redirect { status: rule.status, location }));
        }
        let end = url.find(['?', '#']).unwrap_or(url.len());
        let path = decode(&url.as_bytes()[..end]).unwrap_or_default();
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        // What is rewritten is not matched again: there are no circles.
        let file = html::file_of(path, exists)?;
        let wants = self.facts.wants;
        if rule.status == 200 {
            let Some(path) = file else { return self.missing(404, false, exists).map(Some) };
            // `/* /index.html 200` is for pages: a script that is missing is missing.
            let page = !is_asset(&path);
            let catches_all = rule.source.has_splat() && !rule.force;
            if catches_all && page && is_asset(&self.facts.path) && !wants.navigation {
                return Ok(None);
            }
            return Ok(Some(Outcome::File { path, status: 200 }));
        }
        Ok(Some(match file {
            Some(path) if wants.html || is_asset(&path) => {
                Outcome::File { path, status: rule.status }
            }
            _ => self.missing(rule.status, false, exists)?,
        }))
    }

    /// What says that nothing is there.
    fn missing(
        &self,
        status: u16,
        spa: bool,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<Outcome, Need> {
        let wants = self.facts.wants;
        if spa && wants.navigation && !is_asset(&self.facts.path) && exists(b"index.html")? {
            return Ok(Outcome::File { path: b"index.html".to_vec(), status: 200 });
        }
        if wants.html {
            for page in not_found_pages(&self.facts.path, self.facts.directory) {
                if exists(&page)? {
                    return Ok(Outcome::NotFound { status, page: Some(page) });
                }
            }
        }
        Ok(Outcome::NotFound { status, page: None })
    }

    fn moved(&self, path: &[u8], directory: bool) -> Outcome {
        let mut location = "/".to_owned();
        encode(path, true, &mut location);
        if directory && !path.is_empty() {
            location.push('/');
        }
        if let Some(query) = &self.facts.query {
            location.push('?');
            location.push_str(&printable(query));
        }
        Outcome::Redirect { status: CANONICAL_STATUS, location }
    }

    /// The query is passed on, unless the target has one or the rule took it apart.
    fn with_query(&self, rule: &Redirect, url: String) -> String {
        let query = self.facts.query.as_deref().filter(|query| !query.is_empty());
        let Some(query) = query.filter(|_| rule.query.is_empty()) else { return url };
        let end = url.find('#').unwrap_or(url.len());
        let (before, fragment) = url.split_at(end);
        if before.contains('?') {
            return url;
        }
        format!("{before}?{}{fragment}", printable(query))
    }

    /// Whether a redirect would lead to the very URL that is asked for.
    fn is_own(&self, url: &str) -> bool {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let local = match rest {
            None => url,
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                if !rest[..end].eq_ignore_ascii_case(&self.facts.host) {
                    return false;
                }
                &rest[end..]
            }
        };
        let local = local.split('#').next().unwrap_or(local);
        let (path, query) = match local.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (local, None),
        };
        let asked = self.facts.query.as_deref().map(printable).unwrap_or_default();
        if query.unwrap_or_default() != asked {
            return false;
        }
        let path = decode(path.as_bytes()).unwrap_or_default();
        let path = path.strip_prefix(b"/").unwrap_or(&path);
        let directory = path.is_empty() || path.ends_with(b"/");
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let slash = self.facts.directory || self.facts.path.is_empty();
        path == self.facts.path
            && (self.rules.set.dialect == Dialect::Netlify || directory == slash)
    }

    /// What `_headers` says about the answer, when that is a file.
    pub fn headers(&self) -> HeaderEffect {
        let set = &self.rules.set;
        let mut effect = HeaderEffect::default();
        if set.headers.is_empty() {
            return effect;
        }
        let asked = pattern::segments(set.dialect, &self.facts.path, self.facts.directory);
        for number in self.rules.headers.candidates(&asked) {
            let Some(rule) = set.headers.get(number as usize) else { continue };
            let captured = rule.source.captured(set.dialect, &self.facts.host, &asked);
            let Some(captured) = captured else { continue };
            effect.rules.push(number);
            for change in &rule.changes {
                effect.change(change, &captured, set.dialect);
            }
        }
        effect
    }
}

impl HeaderEffect {
    fn change(&mut self, change: &HeaderChange, captured: &[Vec<u8>], dialect: Dialect) {
        let (name, value) = match change {
            HeaderChange::Set { name, value } => (name, Some(value.value(captured))),
            HeaderChange::Remove { name } => (name, None),
        };
        let before = self.headers.iter_mut().find(|(own, _)| own == name);
        match (before, value) {
            // Pages adds up what several rules say; in Netlify's dialect the last one counts.
            (Some((_, Some(before))), Some(value))
                if dialect == Dialect::Pages
                    && before.len() + value.len() <= limits::LOCATION_BYTES_MAX =>
            {
                before.push_str(", ");
                before.push_str(&value);
            }
            (_, Some(value)) if value.len() > limits::LOCATION_BYTES_MAX => {}
            (Some((_, before)), value) => *before = value,
            (None, value) => self.headers.push((name.clone(), value)),
        }
    }
}

/// The pages that may say that a path does not exist, nearest first.
fn not_found_pages(path: &[u8], directory: bool) -> Vec<Vec<u8>> {
    let mut directories = vec![&b""[..]];
    for (at, byte) in path.iter().enumerate() {
        if directories.len() == NOT_FOUND_DEPTH_MAX {
            break;
        }
        if *byte == b'/' {
            directories.push(&path[..=at]);
        }
    }
    let mut pages: Vec<Vec<u8>> =
        directories.iter().map(|directory| [*directory, b"404.html"].concat()).collect();
    if directory && !path.is_empty() && pages.len() < NOT_FOUND_DEPTH_MAX {
        pages.push([path, b"/404.html"].concat());
    }
    pages.reverse();
    pages
}

/// The parameters of a query, decoded.
fn parameters(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let plain = |text: &str| {
        let spaced = text.replace('+', " ");
        decode(spaced.as_bytes()).unwrap_or_else(|| spaced.into_bytes())
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (plain(name), plain(value))
        })
        .collect()
}

/// Whether the query is as the rule wants it; adds what the rule captures of it.
fn take(rule: &Redirect, parameters: &[(Vec<u8>, Vec<u8>)], captured: &mut Vec<Vec<u8>>) -> bool {
    rule.query.iter().all(|(name, wanted)| {
        let values = parameters.iter().filter(|(own, _)| own == name.as_bytes());
        let mut values = values.map(|(_, value)| value);
        match wanted {
            Wanted::Exactly(wanted) => values.any(|value| value == wanted.as_bytes()),
            Wanted::Any => match values.find(|value| !value.is_empty()) {
                Some(value) => {
                    captured.push(value.clone());
                    true
                }
                None => false,
            },
        }
    })
}

/// A query as it may stand in a header.
fn printable(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for byte in query.bytes() {
        if byte.is_ascii_graphic() && byte != b'#' {
            text.push(char::from(byte));
        } else {
            encode(&[byte], false, &mut text);
        }
    }
    text
}
