//! Which files of a site may be answered with a cache tag: what `invalidate --tag` is about.
//!
//! `_headers` gives tags by the path that was asked for, and a file is answered under several: its
//! own name, clean URLs, whatever rules rewrite, and any path at all if it is the page of a
//! single-page application or says that nothing is there. A path that is known in full is asked
//! about in full. Where rules with wildcards meet rules with wildcards, any file that the one may
//! lead to counts as one that the other may be about: too many, never too few.
//!
//! A takedown is about less, for ever, and not a file more: [`tagged`].

use std::collections::{BTreeSet, HashSet};

use super::answers::{
    Answers, BYTES_A_STEP, Shape, Unanswered, answers, led_to, places, target_texts,
};
use super::budget::{Budget, TooMuch};
use super::decide::{Lookups, path_of};
use super::html::{self, Resolved};
use super::pattern::{self, Pattern, Segment};
use super::request::is_loaded;
use super::template::{Captures, Part};
use super::{HeaderChange, HeaderRule, Redirect, Rules, is_rule_file};
use crate::limits;
use crate::tags::{TAG_HEADERS, tags_of};

/// The files of a deploy, and the files of earlier deploys that may answer where it has none.
#[derive(Debug, Clone, Default)]
pub struct SiteFiles {
    /// Of the deploy that has the rules.
    pub own: HashSet<Vec<u8>>,
    /// Of earlier deploys, which may be at paths that the deploy has, too: a rule may hide those.
    pub earlier: HashSet<Vec<u8>>,
}

/// Files that may be answered with a tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bearers {
    /// Of the deploy that has the rules.
    pub own: HashSet<Vec<u8>>,
    /// Of earlier deploys.
    pub earlier: HashSet<Vec<u8>>,
}

impl Lookups for SiteFiles {
    fn exists(&self, path: &[u8]) -> Option<bool> {
        Some(self.own.contains(path))
    }
}

/// The files that may be answered with a tag that is `wanted`.
///
/// # Errors
/// When the budget does not suffice.
pub fn bearers(
    rules: &Rules,
    wanted: &dyn Fn(&str) -> bool,
    files: &SiteFiles,
    budget: &mut Budget<'_>,
) -> Result<Bearers, TooMuch> {
    let Some(mut search) = Search::new(rules, wanted, files, budget)? else {
        return Ok(Bearers::default());
    };
    search.run()?;
    Ok(search.found)
}

/// Why the files that have a tag cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// It would take too long.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// It depends on the host.
    #[error(
        "rules about /{} name many hosts, or hosts with placeholders: whether it has the tag cannot \
         be told",
        String::from_utf8_lossy(.0)
    )]
    Hosts(Vec<u8>),
}

/// The files of a deploy that have a tag that is `wanted` at their own name, or at the clean URL that
/// they are the page of, at any host; of the `earlier` ones, which other deploys have, at their own
/// name. Rules that rewrite or redirect are not asked: what leads to a file under another name says
/// nothing about what the file is.
///
/// # Errors
/// When the budget does not suffice, or it depends on hosts that cannot be gone through.
pub fn tagged(
    rules: &Rules,
    wanted: &dyn Fn(&str) -> bool,
    files: &SiteFiles,
    budget: &mut Budget<'_>,
) -> Result<Bearers, Untold> {
    let Some(mut search) = Search::new(rules, wanted, files, budget)? else {
        return Ok(Bearers::default());
    };
    search.redirects = false;
    for file in files.own.iter().filter(|file| !is_rule_file(file)) {
        for (path, directory) in own_urls(file) {
            search.budget.spend(1)?;
            if path != *file {
                let mut exists = |path: &[u8]| Ok::<_, TooMuch>(files.own.contains(path));
                let page = html::resolve(rules.set.html, &path, directory, &mut exists)?;
                if !matches!(page, Some(Resolved::File(page)) if page == *file) {
                    continue;
                }
            }
            if search.has_tag_at_some_host(&path, directory)? {
                search.found.own.insert(file.clone());
                break;
            }
        }
    }
    for file in files.earlier.difference(&files.own).filter(|file| !is_rule_file(file)) {
        search.budget.spend(1)?;
        if search.has_tag_at_some_host(file, false)? {
            search.found.earlier.insert(file.clone());
        }
    }
    Ok(search.found)
}

/// Steps that making the headers of one answer takes, about.
const HEADERS_STEPS: usize = 64;

/// Whether a line of `_headers` may give a tag that is wanted.
fn may_give(
    change: &HeaderChange,
    wanted: &dyn Fn(&str) -> bool,
    budget: &mut Budget<'_>,
) -> Result<bool, TooMuch> {
    budget.spend(1)?;
    let HeaderChange::Set { name, value } = change else { return Ok(false) };
    if !TAG_HEADERS.contains(&name.as_str()) {
        return Ok(false);
    }
    let mut text = String::new();
    for part in &value.0 {
        match part {
            Part::Text(own) => text.push_str(own),
            // A comma in what is captured begins another tag.
            Part::Captured { .. } => return Ok(true),
        }
    }
    budget.spend(tag_steps(&text))?;
    Ok(tags_of(&[(name, &text)]).any(wanted))
}

/// Steps that reading the tags of a header takes, each of which is looked for.
fn tag_steps(value: &str) -> usize {
    let ends = value.bytes().filter(|byte| *byte == b',' || byte.is_ascii_whitespace()).count();
    value.len() / BYTES_A_STEP + 2 * (ends + 1)
}

struct Search<'r, 's> {
    rules: &'r Rules,
    wanted: &'r dyn Fn(&str) -> bool,
    /// Which rules of `_headers` may give a tag that is wanted.
    gives: Vec<bool>,
    /// Whether it matters what `_redirects` says.
    redirects: bool,
    files: &'r SiteFiles,
    found: Bearers,
    /// What bears the tag, as far as it is known.
    shapes: HashSet<Shape>,
    /// Paths with a rule that may give the tag, which were asked about.
    asked: HashSet<(Vec<u8>, bool)>,
    budget: &'r mut Budget<'s>,
}

/// Rules of `_headers` about a path, of which one may give a tag that is wanted.
struct Giving {
    about: Vec<u32>,
    /// Whether each of those that may names one host, or none.
    few: bool,
}

/// Paths by which a rule may lead to a file.
enum Way {
    /// This one.
    Path(Vec<u8>),
    /// One of these.
    Paths(Vec<Segment>),
}

impl<'r, 's> Search<'r, 's> {
    /// `None` when no rule of `_headers` gives the tag.
    fn new(
        rules: &'r Rules,
        wanted: &'r dyn Fn(&str) -> bool,
        files: &'r SiteFiles,
        budget: &'r mut Budget<'s>,
    ) -> Result<Option<Self>, TooMuch> {
        let mut gives = Vec::with_capacity(rules.set.headers.len());
        for rule in &rules.set.headers {
            budget.spend(1)?;
            let mut any = false;
            for change in &rule.changes {
                any = may_give(change, wanted, budget)?;
                if any {
                    break;
                }
            }
            gives.push(any);
        }
        Ok(gives.contains(&true).then(|| Search {
            rules,
            wanted,
            gives,
            redirects: true,
            files,
            found: Bearers::default(),
            shapes: HashSet::new(),
            asked: HashSet::new(),
            budget,
        }))
    }

    fn run(&mut self) -> Result<(), TooMuch> {
        for file in &self.files.own {
            self.budget.spend(1)?;
            for (path, directory) in own_urls(file) {
                self.ask(path, directory)?;
            }
        }
        for file in &self.files.earlier {
            self.ask(file.clone(), false)?;
        }
        let set = &self.rules.set;
        let giving = set.headers.iter().zip(self.gives.clone());
        let giving: Vec<&HeaderRule> =
            giving.filter_map(|(rule, gives)| gives.then_some(rule)).collect();
        let rewrites = set.redirects.iter().filter(|rule| !(301..=308).contains(&rule.status));
        let (fixed, open): (Vec<&Redirect>, Vec<&Redirect>) =
            rewrites.partition(|rule| !rule.source.is_open());
        let fixed = fixed.iter().map(|rule| &rule.source);
        let named = giving.iter().map(|rule| &rule.source).filter(|own| !own.is_open());
        for source in fixed.chain(named) {
            self.ask_all(text_of(&source.segments))?;
        }
        let giving: Vec<&Pattern> =
            giving.iter().map(|rule| &rule.source).filter(|own| own.is_open()).collect();
        for rule in open {
            self.open(rule, &giving)?;
        }
        self.anywhere(&giving)?;
        self.found.own.extend(led_to(&self.shapes, &self.files.own, self.budget)?);
        self.found.earlier.extend(led_to(&self.shapes, &self.files.earlier, self.budget)?);
        Ok(())
    }

    /// Asks about a path with and without a final slash; `text` is the path as a URL has it.
    fn ask_all(&mut self, text: Vec<u8>) -> Result<(), TooMuch> {
        if let Some(path) = text.strip_suffix(b"/") {
            self.ask(path.to_vec(), false)?;
            self.ask(path.to_vec(), true)?;
            // Two slashes at the end.
            return self.ask(text, true);
        }
        self.ask(text.clone(), false)?;
        self.ask(text, true)
    }

    /// Adds what a path may be answered with where its headers have the tag.
    fn ask(&mut self, path: Vec<u8>, directory: bool) -> Result<(), TooMuch> {
        let Some(giving) = self.giving(&path, directory)? else { return Ok(()) };
        if !self.asked.insert((path.clone(), directory)) {
            return Ok(());
        }
        let Some(hosts) = self.hosts_with(&giving, (&path, directory))? else {
            return self.answered((&path, directory), None);
        };
        for host in &hosts {
            self.answered((&path, directory), Some(host))?;
        }
        Ok(())
    }

    fn has_tag_at_some_host(&mut self, path: &[u8], directory: bool) -> Result<bool, Untold> {
        let Some(giving) = self.giving(path, directory)? else { return Ok(false) };
        match self.hosts_with(&giving, (path, directory))? {
            None => Err(Untold::Hosts(path.to_vec())),
            Some(hosts) => Ok(!hosts.is_empty()),
        }
    }

    /// The rules of `_headers` about a path, if one of them may give the tag.
    fn giving(&mut self, path: &[u8], directory: bool) -> Result<Option<Giving>, TooMuch> {
        let rules = self.rules;
        let set = &rules.set;
        let segments = pattern::segments(set.dialect, path, directory);
        let (about, nodes) = rules.headers.all_candidates(&segments);
        self.budget.spend(1 + nodes + about.len())?;
        let (mut gives, mut few) = (false, true);
        for number in &about {
            if self.gives.get(*number as usize) != Some(&true) {
                continue;
            }
            let Some(rule) = set.headers.get(*number as usize) else { continue };
            self.budget.spend(1 + rule.source.search_work())?;
            if rule.source.captured_at_any_host(set.dialect, &segments).is_some() {
                gives = true;
                few &= rule.source.one_host();
            }
        }
        Ok(gives.then_some(Giving { about, few }))
    }

    /// The hosts, of those at which rules about a path differ, where its headers have the tag; `None`
    /// when they cannot be gone through.
    fn hosts_with(
        &mut self,
        giving: &Giving,
        (path, directory): (&[u8], bool),
    ) -> Result<Option<Vec<String>>, TooMuch> {
        let Giving { about, few } = giving;
        let set = &self.rules.set;
        // The hosts that placeholders stand for cannot be gone through.
        let segments = pattern::segments(set.dialect, path, directory);
        let hosts = if *few { self.hosts_at(&segments, about)? } else { None };
        let Some(hosts) = hosts else { return Ok(None) };
        let own = about.iter().filter_map(|at| set.headers.get(*at as usize));
        let own = own.map(|rule| 2 + rule.source.search_work() + rule.changes.len());
        let work = HEADERS_STEPS + own.sum::<usize>();
        let mut with = Vec::new();
        for host in hosts {
            self.budget.spend(work)?;
            if self.has_tag(path, directory, &host)? {
                with.push(host);
            }
        }
        Ok(Some(with))
    }

    /// Adds what a path is answered with at a host, or at any.
    fn answered(&mut self, asked: (&[u8], bool), host: Option<&str>) -> Result<(), TooMuch> {
        let said = match answers(self.rules, asked, host, self.files, self.budget) {
            Ok(said) => said,
            Err(Unanswered::TooMuch(error)) => return Err(error),
            // All files are known.
            Err(Unanswered::Need(_)) => return Err(TooMuch),
        };
        let Answers { files, earlier, shapes } = said;
        self.found.own.extend(files);
        let known = earlier.into_iter().filter(|path| self.files.earlier.contains(path));
        self.found.earlier.extend(known);
        self.shapes.extend(shapes);
        Ok(())
    }

    /// The hosts at which rules about a path differ: those that they name, and `""` for any other;
    /// `None` when there are many. `about` are the rules of `_headers` for the path.
    fn hosts_at(
        &mut self,
        segments: &[&[u8]],
        about: &[u32],
    ) -> Result<Option<BTreeSet<String>>, TooMuch> {
        let set = &self.rules.set;
        let (redirects, nodes) = match self.redirects {
            true => self.rules.redirects.all_candidates(segments),
            false => Default::default(),
        };
        self.budget.spend(nodes + redirects.len() + about.len())?;
        let redirects = redirects.into_iter().filter_map(|at| set.redirects.get(at as usize));
        let headers = about.iter().filter_map(|at| set.headers.get(*at as usize));
        let sources = redirects.map(|rule| &rule.source).chain(headers.map(|rule| &rule.source));
        let mut hosts = BTreeSet::from([String::new()]);
        for source in sources.filter(|source| source.one_host()) {
            let Some(host) = &source.host else { continue };
            self.budget.spend(1 + source.search_work())?;
            if source.captured_at_any_host(set.dialect, segments).is_some() {
                hosts.insert(host.clone());
            }
            if hosts.len() > limits::SEARCH_HOSTS_MAX {
                return Ok(None);
            }
        }
        Ok(Some(hosts))
    }

    fn has_tag(&mut self, path: &[u8], directory: bool, host: &str) -> Result<bool, TooMuch> {
        let headers = self.rules.headers_at((path, directory), host).headers;
        let sent = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let sent: Vec<(String, String)> = sent.collect();
        let steps = |(name, value): &(String, String)| {
            let carries = TAG_HEADERS.contains(&name.as_str());
            if carries { tag_steps(value) } else { value.len() / BYTES_A_STEP }
        };
        self.budget.spend(sent.iter().map(steps).sum())?;
        Ok(tags_of(&sent).any(self.wanted))
    }

    /// A rule with wildcards, which is no redirect, and rules with wildcards that may give the tag.
    fn open(&mut self, rule: &Redirect, giving: &[&Pattern]) -> Result<(), TooMuch> {
        let mut meeting = Vec::new();
        for own in giving {
            self.budget.spend(1)?;
            if own.host_meets(&rule.source) && own.meets(&rule.source.segments, self.budget)? {
                meeting.push(*own);
            }
        }
        let giving = meeting;
        if giving.is_empty() {
            return Ok(());
        }
        if places(&rule.target) == 0 {
            let Some(url) = rule.target.url(&Captures::default()) else { return Ok(()) };
            let (path, directory) = path_of(&url);
            let files = self.files;
            let mut exists = |path: &[u8]| Ok::<_, TooMuch>(files.own.contains(path));
            match html::file_of(self.rules.set.html, &path, directory, &mut exists)? {
                Some(file) => drop(self.found.own.insert(file)),
                None if self.files.earlier.contains(&path) => {
                    self.found.earlier.insert(path);
                }
                None => {}
            }
            return Ok(());
        }
        self.budget.spend(rule.target.text_bytes() / BYTES_A_STEP)?;
        let shape = Shape::of(&rule.target, &Captures::default());
        let files = self.files;
        let own = files.own.iter().map(|file| (file, true));
        for (file, own) in own.chain(files.earlier.iter().map(|file| (file, false))) {
            if !shape.may_lead_to(file, self.budget)? {
                continue;
            }
            let mut bears = false;
            match ways(rule, &shape, file) {
                None => bears = true,
                Some(ways) => {
                    for way in ways {
                        match way {
                            Way::Path(text) => self.ask_all(text)?,
                            Way::Paths(segments) => {
                                for own in &giving {
                                    if bears {
                                        break;
                                    }
                                    bears = own.meets(&segments, self.budget)?;
                                }
                            }
                        }
                    }
                }
            }
            if bears {
                let found = if own { &mut self.found.own } else { &mut self.found.earlier };
                found.insert(file.clone());
            }
        }
        Ok(())
    }

    /// What is answered at any path, or at any below a directory.
    fn anywhere(&mut self, giving: &[&Pattern]) -> Result<(), TooMuch> {
        let index = &b"index.html"[..];
        if self.rules.set.spa && !giving.is_empty() && self.files.own.contains(index) {
            self.found.own.insert(index.to_vec());
        }
        let mut missing = Vec::new();
        for own in giving {
            self.budget.spend(1)?;
            missing.extend((!for_loaded(own)).then_some(*own));
        }
        for file in &self.files.own {
            self.budget.spend(1)?;
            let Some(directory) = file.strip_suffix(b"404.html") else { continue };
            let mut below = match directory.strip_suffix(b"/") {
                Some(path) => path.split(|byte| *byte == b'/').map(literal).collect(),
                None if directory.is_empty() => Vec::new(),
                None => continue,
            };
            below.push(Segment::Splat { prefix: Vec::new(), suffix: Vec::new() });
            for own in &missing {
                if own.meets(&below, self.budget)? {
                    self.found.own.insert(file.clone());
                    break;
                }
            }
        }
        Ok(())
    }
}

fn literal(bytes: &[u8]) -> Segment {
    Segment::Literal(bytes.to_vec())
}

/// Whether all paths of a pattern are of files that pages load by themselves: no page says that one
/// of those is missing.
fn for_loaded(pattern: &Pattern) -> bool {
    let end = pattern.segments.last().map_or(&b""[..], Segment::end);
    end.contains(&b'.') && is_loaded(end)
}

/// The URLs under which a file may be answered by itself, in any mode: decoded, without a slash at
/// the ends, and whether there is one at the end.
fn own_urls(file: &[u8]) -> Vec<(Vec<u8>, bool)> {
    let mut urls = vec![(file.to_vec(), false)];
    if file == b"index.html" {
        urls.push((Vec::new(), true));
    }
    for end in [&b"/index.html"[..], b".html"] {
        if let Some(stem) = file.strip_suffix(end) {
            urls.extend([(stem.to_vec(), false), (stem.to_vec(), true)]);
        }
    }
    urls
}

/// A path without wildcards as a URL has it.
fn text_of(segments: &[Segment]) -> Vec<u8> {
    filled(segments, b"")
}

/// A path with what its only wildcard stands for.
fn filled(segments: &[Segment], captured: &[u8]) -> Vec<u8> {
    let bytes = segments.iter().map(|segment| match segment {
        Segment::Literal(bytes) => bytes.clone(),
        Segment::Name { prefix, suffix } | Segment::Splat { prefix, suffix } => {
            [prefix.as_slice(), captured, suffix].concat()
        }
        // Has several wildcards.
        Segment::Names { texts } => texts.concat(),
    });
    bytes.collect::<Vec<_>>().join(&b'/')
}

/// The paths by which a rule leads to a file, if its target tells what its wildcard stands for.
fn ways(rule: &Redirect, shape: &Shape, file: &[u8]) -> Option<Vec<Way>> {
    let segments = &rule.source.segments;
    let open = |segment: &&Segment| !matches!(segment, Segment::Literal(_));
    let single = |segment: &Segment| !matches!(segment, Segment::Names { .. });
    let one = segments.iter().filter(open).count() == 1
        && segments.iter().all(single)
        && places(&rule.target) == 1;
    let (before, after) = shape.around_hole().filter(|_| one)?;
    let splat = rule.source.has_splat();
    let mut ways = Vec::new();
    for text in target_texts(file) {
        let captured = text.strip_prefix(before);
        let Some(captured) = captured.and_then(|rest| rest.strip_suffix(after)) else {
            continue;
        };
        if splat || (!captured.is_empty() && !captured.contains(&b'/')) {
            ways.push(Way::Path(filled(segments, captured)));
        }
    }
    // Of slashes at the beginning of a target one is left: what is captured may be nothing, or begin
    // with more of them.
    if splat && before.iter().all(|byte| *byte == b'/') {
        ways.push(Way::Path(filled(segments, b"")));
        let doubled = segments.iter().flat_map(|segment| match segment {
            Segment::Splat { prefix, suffix } => {
                vec![literal(prefix), Segment::Splat { prefix: Vec::new(), suffix: suffix.clone() }]
            }
            other => vec![other.clone()],
        });
        ways.push(Way::Paths(doubled.collect()));
    }
    Some(ways)
}

#[cfg(test)]
#[path = "bearers_tests.rs"]
mod tests;
