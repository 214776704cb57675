//! From a path and what is known of the request to what answers it.
//!
//! A [`Question`] is made once for a request; [`Question::decide`] is called with what is known of
//! the site's files, and names the path it must know about next, until it has decided. So the same
//! function serves an edge, which looks paths up in manifest pages, and a tool that has a directory.

use std::sync::OnceLock;

use super::html::{self, Resolved};
use super::request::{Facts, is_asset, is_loaded, is_page};
use super::template::{Captures, Within, decode, encode};
use super::trie::Key;
use super::{Redirect, Rules, Wanted, is_rule_file, pattern};
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
    /// What of the request it depends on beside the URL.
    pub vary: Vary,
}

/// What of a request a decision depends on beside the URL, whether or not it came out that way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vary {
    /// Whether somebody navigates.
    pub navigation: bool,
    /// The preferred language.
    pub language: bool,
    /// The cookies.
    pub cookie: bool,
}

impl Vary {
    /// Names of headers, for `Vary` (RFC 9110 §12.5.5).
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [
            (self.navigation, "Accept"),
            (self.navigation, "Sec-Fetch-Mode"),
            (self.language, "Accept-Language"),
            (self.cookie, "Cookie"),
        ];
        all.into_iter().filter(|(depends, _)| *depends).map(|(_, name)| name)
    }
}

/// What a decision came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This file, which exists.
    File {
        /// Its path within the site.
        path: Vec<u8>,
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
        /// The site's own page that says so; none for scripts and the like, which are of no use as
        /// pages.
        page: Option<Vec<u8>>,
        /// The file that is missing. An earlier deploy may have it.
        missing: Option<Vec<u8>>,
    },
}

/// A rule of `_redirects` whose path and query fit, with what it captured.
struct Match<'r> {
    number: u32,
    rule: &'r Redirect,
    /// `None` when its conditions on the visitor do not hold.
    captured: Option<Captures>,
    /// Where it leads, once that was asked for.
    leads: OnceLock<Leads>,
}

/// Where a rule leads, for one request.
enum Leads {
    /// Nowhere: to where the request came from, or to a URL that is too long.
    Nowhere,
    /// To this URL.
    Url(String),
    /// To what is at this path, which is decoded and has no slash at its ends.
    Path { path: Vec<u8>, directory: bool },
}

/// A request that is asked about.
pub struct Question<'r> {
    pub(super) rules: &'r Rules,
    pub(super) facts: Facts,
    /// The query as it may stand in a header.
    query: String,
    matches: Vec<Match<'r>>,
}

impl<'r> Question<'r> {
    /// Finds the rules that fit.
    pub fn new(rules: &'r Rules, facts: Facts) -> Self {
        let dialect = rules.set.dialect;
        let mut matches = Vec::new();
        if !rules.set.redirects.is_empty() {
            let asked = pattern::segments(dialect, &facts.path, facts.directory);
            let parameters = parameters(facts.query.as_deref().unwrap_or_default());
            let keys = keys(&facts.host, &parameters);
            let mut hold = 0;
            for number in rules.redirects.candidates(&asked, &keys) {
                let Some(rule) = rules.set.redirects.get(number as usize) else { continue };
                let captured = rule.source.captured(dialect, &facts.host, &asked);
                let Some(mut captured) = captured else { continue };
                let Some(taken) = taken(rule, &parameters) else { continue };
                if hold == limits::RULE_MATCHES_MAX {
                    break;
                }
                // Of rules that do not hold there may be thousands.
                let captured = holds(rule, &facts).then(|| {
                    captured.extend(taken.into_iter().map(<[u8]>::to_vec));
                    Captures::new(captured)
                });
                hold += usize::from(captured.is_some());
                matches.push(Match { number, rule, captured, leads: OnceLock::new() });
            }
        }
        let query = facts.query.as_deref().map(printable).unwrap_or_default();
        Self { rules, facts, query, matches }
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
        let mut vary = Vary::default();
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
            vary.language |= !found.rule.languages.is_empty();
            vary.cookie |= !found.rule.cookies.is_empty();
            let Some(captured) = &found.captured else { continue };
            let leads = found.leads.get_or_init(|| self.leads(found.rule, captured));
            if let Some(outcome) = self.apply(found.rule, leads, &mut vary, &mut exists)? {
                return Ok(Decision { rule: Some(found.number), outcome, vary });
            }
        }
        let own = match own {
            Some(own) => own,
            None => html::resolve(set.html, path, directory, &mut exists)?,
        };
        let outcome = match own {
            Some(Resolved::File(path)) => Outcome::File { path },
            Some(Resolved::Moved { path, directory }) => self.moved(&path, directory),
            None => {
                // The page of a single-page application is for navigations.
                let page = set.spa && !is_asset(path);
                vary.navigation |= page;
                if page && self.facts.navigation && exists(b"index.html")? {
                    Outcome::File { path: b"index.html".to_vec() }
                } else {
                    self.missing(404, (!directory).then(|| path.clone()), &mut exists)?
                }
            }
        };
        Ok(Decision { rule: None, outcome, vary })
    }

    /// Where a rule that fits leads.
    fn leads(&self, rule: &Redirect, captured: &Captures) -> Leads {
        let Some(url) = rule.target.url(captured) else { return Leads::Nowhere };
        if (301..=308).contains(&rule.status) {
            let location = self.with_query(rule, url);
            let location = location.filter(|location| !self.is_own(location));
            return location.map_or(Leads::Nowhere, Leads::Url);
        }
        let (path, directory) = path_of(&url);
        Leads::Path { path, directory }
    }

    /// What a rule that fits comes to; `None` when it does not apply after all.
    fn apply(
        &self,
        rule: &Redirect,
        leads: &Leads,
        vary: &mut Vary,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<Option<Outcome>, Need> {
        let (path, directory) = match leads {
            Leads::Nowhere => return Ok(None),
            Leads::Url(location) => {
                let (status, location) = (rule.status, location.clone());
                return Ok(Some(Outcome::Redirect { status, location }));
            }
            Leads::Path { path, directory } => (path, *directory),
        };
        // What is rewritten is not matched again: there are no circles.
        let file = html::file_of(self.rules.set.html, path, directory, exists)?;
        if rule.status != 200 {
            let asked = (rule.status == 404 && !self.facts.directory).then_some(&self.facts.path);
            return Ok(Some(match file {
                Some(page) if !is_loaded(&self.facts.path) => {
                    let (status, page) = (rule.status, Some(page));
                    Outcome::NotFound { status, page, missing: asked.cloned() }
                }
                _ => self.missing(rule.status, asked.cloned(), exists)?,
            }));
        }
        let Some(file) = file else {
            let missing = (!directory).then(|| path.clone());
            return self.missing(404, missing, exists).map(Some);
        };
        // `/* /index.html 200` is for pages: a script that is missing is missing.
        let catches_all = rule.source.is_open() && !rule.force && is_page(&file);
        if catches_all && is_asset(&self.facts.path) {
            let loaded = is_loaded(&self.facts.path);
            // Pages' rules come before files: only who asks for a script that is there gets a page.
            let pages = self.rules.set.dialect == Dialect::Pages;
            if loaded && !(pages && exists(&self.facts.path)?) {
                return Ok(None);
            }
            if !pages {
                vary.navigation = true;
                if !self.facts.navigation {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Outcome::File { path: file }))
    }

    /// What says that nothing is there.
    fn missing(
        &self,
        status: u16,
        missing: Option<Vec<u8>>,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<Outcome, Need> {
        if !is_loaded(&self.facts.path) {
            for page in not_found_pages(&self.facts.path, self.facts.directory) {
                if exists(&page)? {
                    return Ok(Outcome::NotFound { status, page: Some(page), missing });
                }
            }
        }
        Ok(Outcome::NotFound { status, page: None, missing })
    }

    fn moved(&self, path: &[u8], directory: bool) -> Outcome {
        let mut location = "/".to_owned();
        encode(path, Within::Path, &mut location);
        if directory && !path.is_empty() {
            location.push('/');
        }
        if self.facts.query.is_some() {
            location.push('?');
            location.push_str(&self.query);
        }
        Outcome::Redirect { status: CANONICAL_STATUS, location }
    }

    /// The query is passed on, unless the target has one or the rule took it apart. `None` when that
    /// makes the URL too long.
    fn with_query(&self, rule: &Redirect, url: String) -> Option<String> {
        let end = url.find('#').unwrap_or(url.len());
        let (before, fragment) = url.split_at(end);
        if self.query.is_empty() || !rule.query.is_empty() || before.contains('?') {
            return Some(url);
        }
        let fits = url.len() + 1 + self.query.len() <= limits::LOCATION_BYTES_MAX;
        fits.then(|| format!("{before}?{}{fragment}", self.query))
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
        if query.unwrap_or_default() != self.query {
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

    /// The request it is about.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// The path of a target on this site: decoded, without a slash at its ends, and whether it had one
/// at the end.
pub(super) fn path_of(url: &str) -> (Vec<u8>, bool) {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let target = decode(&url.as_bytes()[..end]).unwrap_or_default();
    let target = target.strip_prefix(b"/").unwrap_or(&target);
    let path = target.strip_suffix(b"/").unwrap_or(target);
    (path.to_vec(), path.is_empty() || path != target)
}

/// The pages that may say that a path does not exist, nearest first.
pub fn not_found_pages(path: &[u8], directory: bool) -> Vec<Vec<u8>> {
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

/// Whether the conditions of a rule on the visitor hold.
fn holds(rule: &Redirect, facts: &Facts) -> bool {
    let Redirect { languages, cookies, .. } = rule;
    let speaks = |language: &String| facts.visitor.speaks(language);
    let sends = |cookie: &String| facts.visitor.cookies.contains(cookie);
    (languages.is_empty() || languages.iter().any(speaks))
        && (cookies.is_empty() || cookies.iter().any(sends))
}

/// What the request has that rules are sorted by.
pub(super) fn keys(host: &str, parameters: &[(Vec<u8>, Vec<u8>)]) -> Vec<Key> {
    let host = Some(Box::from(host));
    let mut keys = vec![Key { host: host.clone(), parameter: None }];
    for (name, value) in parameters {
        let parameter = Some((name.as_slice().into(), value.as_slice().into()));
        keys.push(Key { host: host.clone(), parameter: parameter.clone() });
        keys.push(Key { host: None, parameter });
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The parameters of a query, decoded; the first of them.
fn parameters(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let plain = |text: &str| {
        let spaced = text.replace('+', " ");
        decode(spaced.as_bytes()).unwrap_or_else(|| spaced.into_bytes())
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .take(limits::RULE_PARAMETERS_MAX)
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (plain(name), plain(value))
        })
        .collect()
}

/// What a rule captures of the query, if that is as the rule wants it.
fn taken<'p>(rule: &Redirect, parameters: &'p [(Vec<u8>, Vec<u8>)]) -> Option<Vec<&'p [u8]>> {
    let mut taken = Vec::new();
    for (name, wanted) in &rule.query {
        let values = parameters.iter().filter(|(own, _)| own == name.as_bytes());
        let mut values = values.map(|(_, value)| value.as_slice());
        match wanted {
            Wanted::Exactly(wanted) => {
                values.find(|value| *value == wanted.as_bytes())?;
            }
            Wanted::Any => taken.push(values.find(|value| !value.is_empty())?),
        }
    }
    Some(taken)
}

/// A query as it may stand in a header.
fn printable(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for byte in query.bytes() {
        if byte.is_ascii_graphic() && byte != b'#' {
            text.push(char::from(byte));
        } else {
            encode(&[byte], Within::Query, &mut text);
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::rules::parse::{Sources, parse};
    use crate::rules::request::Visitor;
    use crate::site::SiteSettings;

    #[test]
    fn what_does_not_hold_keeps_nothing_and_what_does_is_made_once() {
        let text = "/* x=:x /de/:x 302 Language=de\n".repeat(1000) + "/* x=:x /no/:x 200\n";
        let sources = Sources { redirects: Some(text.as_bytes()), headers: None };
        let rules = Rules::new(parse(sources, &SiteSettings::default()).unwrap());
        let facts = Facts {
            path: b"a".to_vec(),
            directory: false,
            host: "blog.example".to_owned(),
            query: Some(format!("x={}", "y".repeat(1000))),
            navigation: true,
            visitor: Visitor::default(),
        };
        let question = Question::new(&rules, facts);
        assert_eq!(question.matches.len(), 1001);
        let held = |found: &&Match<'_>| found.captured.is_some();
        assert_eq!(question.matches.iter().filter(held).count(), 1);
        struct Growing(Vec<Vec<u8>>);
        impl Lookups for Growing {
            fn exists(&self, path: &[u8]) -> Option<bool> {
                self.0.iter().any(|own| own == path).then_some(false)
            }
        }
        let mut known = Growing(Vec::new());
        let mut made = None;
        while let Err(Need(path)) = question.decide(&known) {
            known.0.push(path);
            let leads = question.matches[1000].leads.get();
            if let Some(Leads::Path { path, .. }) = leads {
                assert_eq!(*made.get_or_insert(path.as_ptr()), path.as_ptr());
            }
        }
        assert!(made.is_some() && known.0.len() > 5, "{:?}", known.0.len());
        assert!(question.matches[..1000].iter().all(|found| found.leads.get().is_none()));
    }
}
