//! Every file that a path may be answered with, whoever asks and with whatever query.
//!
//! [`super::decide`] says what answers one request; this says what may answer any request for a path
//! at a host, so that an edge knows which copies an invalidated path is about. It may name too much
//! (a redirect that always leads away is not taken to hide the file behind it), never too little.

use std::collections::HashSet;

use super::budget::{Budget, TooMuch};
use super::decide::{Lookups, Need, not_found_pages, path_of};
use super::html::{self, Resolved};
use super::request::{is_asset, is_loaded, is_page};
use super::template::{Captures, Part, Template, decode};
use super::{Redirect, Rules, is_rule_file, pattern};
use crate::limits;
use crate::site::Dialect;

/// What may answer requests for one path.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers {
    /// Files that exist.
    pub files: HashSet<Vec<u8>>,
    /// Paths at which no file exists; one of an earlier deploy may answer.
    pub earlier: HashSet<Vec<u8>>,
    /// Rules whose target depends on the query lead to what has such a path.
    pub shapes: HashSet<Shape>,
}

/// The path of a target of which parts are not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    /// What is known; never two parts in a row, and none is empty. `None` stands for any text.
    parts: Vec<Option<Vec<u8>>>,
    /// Slashes in it.
    slashes: usize,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unanswered {
    /// This path has to be looked up.
    Need(Need),
    /// It would take too long.
    TooMuch(TooMuch),
}

impl From<TooMuch> for Unanswered {
    fn from(error: TooMuch) -> Self {
        Self::TooMuch(error)
    }
}

/// What may answer a path (decoded, without a slash at its ends) at a host, or at any.
///
/// # Errors
/// With the path to look up next, when what is known does not suffice; when the budget does not.
pub fn answers(
    rules: &Rules,
    (path, directory): (&[u8], bool),
    host: Option<&str>,
    known: &impl Lookups,
    budget: &mut Budget<'_>,
) -> Result<Answers, Unanswered> {
    all_answers(rules, (path, directory), host, known, (budget, true))
}

/// As [`answers`] at any host, for who cannot go through the files that a shape is about: the first
/// shape is too much.
///
/// # Errors
/// As [`answers`].
pub fn closed_answers(
    rules: &Rules,
    asked: (&[u8], bool),
    known: &impl Lookups,
    budget: &mut Budget<'_>,
) -> Result<Answers, Unanswered> {
    all_answers(rules, asked, None, known, (budget, false))
}

fn all_answers(
    rules: &Rules,
    (path, directory): (&[u8], bool),
    host: Option<&str>,
    known: &impl Lookups,
    (budget, open): (&mut Budget<'_>, bool),
) -> Result<Answers, Unanswered> {
    let set = &rules.set;
    let asked = pattern::segments(set.dialect, path, directory);
    let (numbers, nodes) = rules.redirects.all_candidates(&asked);
    budget.spend(1 + nodes + numbers.len())?;
    let mut asking = Asking { rules, asked: (path, directory), known, budget, missing: None };
    let mut found = Answers::default();
    let own = html::resolve(set.html, path, directory, &mut |path| asking.exists(path))?;
    let mut fit = 0;
    for number in numbers {
        let Some(rule) = set.redirects.get(number as usize) else { continue };
        asking.budget.spend(1 + rule.source.segments.len())?;
        let captured = match host {
            Some(host) => rule.source.captured(set.dialect, host, &asked),
            None => rule.source.captured_at_any_host(set.dialect, &asked),
        };
        let Some(captured) = captured else { continue };
        fit += 1;
        // Where a file comes before the rule. Redirects are answered with no file, and passed over
        // when a long query makes them too long.
        let hidden = set.dialect == Dialect::Netlify && !rule.force && own.is_some();
        if hidden || (301..=308).contains(&rule.status) {
            continue;
        }
        let bytes: usize = captured.iter().map(Vec::len).sum();
        asking.budget.spend((rule.target.text_bytes() + bytes) / BYTES_A_STEP)?;
        let has_holes = places(&rule.target) > captured.len();
        let captured = Captures::new(captured);
        if has_holes {
            // Longer still with what is not known: never sent, as below.
            let bytes = rule.target.url_bytes(&captured);
            if bytes > limits::LOCATION_BYTES_MAX {
                continue;
            }
            if !open {
                return Err(TooMuch.into());
            }
            asking.budget.spend(SHAPE_STEPS + bytes / SHAPE_BYTES_A_STEP)?;
            found.shapes.insert(Shape::of(&rule.target, &captured));
            found.earlier.extend((rule.status == 404 && !directory).then(|| path.to_vec()));
            found.files.extend(asking.missing()?);
            continue;
        }
        let Some(url) = rule.target.url(&captured) else { continue };
        let decides = asking.take(rule, &url, &mut found)?;
        let always = rule.query.is_empty()
            && rule.languages.is_empty()
            && rule.cookies.is_empty()
            && (host.is_some() || rule.source.host.is_none());
        // Beyond so many a request looks at no more of them.
        if decides && always && fit <= limits::RULE_MATCHES_MAX {
            return Ok(found);
        }
    }
    match own {
        Some(Resolved::File(file)) => {
            found.files.insert(file);
        }
        Some(Resolved::Moved { .. }) => {}
        None => {
            if set.spa && !is_asset(path) && asking.exists(b"index.html")? {
                found.files.insert(b"index.html".to_vec());
            }
            found.earlier.extend((!directory).then(|| path.to_vec()));
            found.files.extend(asking.missing()?);
        }
    }
    Ok(found)
}

/// Bytes that are gone through in one step.
pub(super) const BYTES_A_STEP: usize = 32;
/// Bytes of a shape for each step: it is kept, so all of a search's steps buy some 64 MiB of them.
const SHAPE_BYTES_A_STEP: usize = 4;
/// Steps for a shape beside those for its bytes.
const SHAPE_STEPS: usize = 8;

/// A path that is asked about.
struct Asking<'a, 's, L> {
    rules: &'a Rules,
    asked: (&'a [u8], bool),
    known: &'a L,
    budget: &'a mut Budget<'s>,
    /// The page that says that nothing is there, once it is known.
    missing: Option<Option<Vec<u8>>>,
}

impl<L: Lookups> Asking<'_, '_, L> {
    fn exists(&mut self, path: &[u8]) -> Result<bool, Unanswered> {
        self.budget.spend(1)?;
        if is_rule_file(path) {
            return Ok(false);
        }
        self.known.exists(path).ok_or_else(|| Unanswered::Need(Need(path.to_vec())))
    }

    /// Adds what a rule that is no redirect answers with; says whether it always decides when its
    /// conditions hold.
    fn take(
        &mut self,
        rule: &Redirect,
        url: &str,
        found: &mut Answers,
    ) -> Result<bool, Unanswered> {
        self.budget.spend(url.len() / BYTES_A_STEP)?;
        let set = &self.rules.set;
        let (asked, slash) = self.asked;
        let (path, directory) = path_of(url);
        let file = html::file_of(set.html, &path, directory, &mut |path| self.exists(path))?;
        if rule.status != 200 {
            found.earlier.extend((rule.status == 404 && !slash).then(|| asked.to_vec()));
            match file {
                Some(page) if !is_loaded(asked) => {
                    found.files.insert(page);
                }
                _ => found.files.extend(self.missing()?),
            }
            return Ok(true);
        }
        let Some(file) = file else {
            found.earlier.extend((!directory).then_some(path));
            found.files.extend(self.missing()?);
            return Ok(true);
        };
        // As `Question::decide` has it: for pages, and for who navigates.
        let catches_all = rule.source.is_open() && !rule.force && is_page(&file);
        if !(catches_all && is_asset(asked)) {
            found.files.insert(file);
            return Ok(true);
        }
        let (pages, loaded) = (set.dialect == Dialect::Pages, is_loaded(asked));
        let answers = !loaded || (pages && self.exists(asked)?);
        found.files.extend(answers.then_some(file));
        // In the other dialect it depends on who asks.
        Ok(answers && pages)
    }

    /// The page that says that nothing is there.
    fn missing(&mut self) -> Result<Option<Vec<u8>>, Unanswered> {
        if let Some(page) = &self.missing {
            return Ok(page.clone());
        }
        let (path, directory) = self.asked;
        let mut found = None;
        if !is_loaded(path) {
            for page in not_found_pages(path, directory) {
                if self.exists(&page)? {
                    found = Some(page);
                    break;
                }
            }
        }
        self.missing = Some(found.clone());
        Ok(found)
    }
}

/// Those of these files that rules which lead to one of the shapes may be answered with, in any mode
/// of clean URLs.
///
/// # Errors
/// When the budget does not suffice.
pub fn led_to(
    shapes: &HashSet<Shape>,
    files: &HashSet<Vec<u8>>,
    budget: &mut Budget<'_>,
) -> Result<HashSet<Vec<u8>>, TooMuch> {
    let mut found = HashSet::new();
    for shape in shapes {
        for file in files {
            if shape.may_lead_to(file, budget)? {
                found.insert(file.clone());
            }
        }
    }
    Ok(found)
}

/// Places of captures that a template uses, counted up to the last.
pub(super) fn places(template: &Template) -> usize {
    let place = |part: &Part| match part {
        Part::Text(_) => 0,
        Part::Captured { place, .. } => usize::from(*place) + 1,
    };
    template.0.iter().map(place).max().unwrap_or(0)
}

impl Shape {
    fn new(parts: impl IntoIterator<Item = Option<Vec<u8>>>) -> Self {
        let mut joined: Vec<Option<Vec<u8>>> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (_, Some(part)) if part.is_empty() => {}
                (Some(Some(before)), Some(part)) => before.extend(part),
                (_, part) => joined.push(part),
            }
        }
        let known = joined.iter().flatten().flatten();
        let slashes = known.filter(|byte| **byte == b'/').count();
        Self { parts: joined, slashes }
    }

    /// The path a template leads to, with what is captured as far as that is known.
    pub(super) fn of(template: &Template, captured: &Captures) -> Self {
        let mut parts: Vec<Option<Vec<u8>>> = Vec::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => {
                    let end = text.find(['?', '#']);
                    let text = decode(&text.as_bytes()[..end.unwrap_or(text.len())]);
                    // An escape may go on in what is captured, and one that is none takes all of the
                    // path with it: nothing is known. Two holes, because one would say that the
                    // path is what is captured.
                    let Some(text) = text else { return Self::new([None, None]) };
                    parts.push(Some(text));
                    if end.is_some() {
                        break;
                    }
                }
                Part::Captured { place, .. } => {
                    parts.push(captured.plain(*place).map(<[u8]>::to_vec));
                }
            }
        }
        Self::new(parts)
    }

    /// What stands before and after the only part that is not known, if there is just one.
    pub(super) fn around_hole(&self) -> Option<(&[u8], &[u8])> {
        match self.parts.as_slice() {
            [None] => Some((b"", b"")),
            [Some(before), None] => Some((before, b"")),
            [None, Some(after)] => Some((b"", after)),
            [Some(before), None, Some(after)] => Some((before, after)),
            _ => None,
        }
    }

    /// Whether a rule that leads to such a path may be answered with this file, in any mode of clean
    /// URLs.
    ///
    /// # Errors
    /// When the budget does not suffice.
    pub fn may_lead_to(&self, file: &[u8], budget: &mut Budget<'_>) -> Result<bool, TooMuch> {
        budget.spend(1)?;
        // Whatever the mode, the path begins as the file does, up to what may be left out.
        let stem = file.strip_suffix(b".html").unwrap_or(file);
        let stem = stem.strip_suffix(b"index").unwrap_or(stem);
        let stem = stem.strip_suffix(b"/").unwrap_or(stem);
        let begin = self.parts.first().and_then(Option::as_deref).unwrap_or_default();
        let slashes = begin.iter().take_while(|byte| **byte == b'/').count();
        budget.spend(slashes / BYTES_A_STEP)?;
        let begin = &begin[slashes..];
        if !begin.starts_with(stem) && !stem.starts_with(begin) {
            return Ok(false);
        }
        let texts = target_texts(file);
        budget.spend(texts.len())?;
        for text in texts {
            // Of slashes at the beginning of a target one is left: there may have been as many as
            // this has.
            let more = if text.starts_with(b"/") { self.slashes } else { 0 };
            for more in 0..=more {
                if self.fits(&[&vec![b'/'; more], text.as_slice()].concat(), budget)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether a text is this with something, or nothing, in place of what is not known.
    fn fits(&self, text: &[u8], budget: &mut Budget<'_>) -> Result<bool, TooMuch> {
        budget.spend(1)?;
        // Compared from the left, with the last hole to return to: as for `*` in file names.
        let (mut at, mut own, mut hole) = (0, (0, 0), None);
        let mut turns = 0_usize;
        while at < text.len() {
            turns += 1;
            if turns.is_multiple_of(BYTES_A_STEP) {
                budget.spend(1)?;
            }
            let (part, byte) = own;
            match self.parts.get(part) {
                Some(Some(bytes)) if bytes.get(byte) == Some(&text[at]) => {
                    own = if byte + 1 == bytes.len() { (part + 1, 0) } else { (part, byte + 1) };
                    at += 1;
                }
                Some(None) => {
                    hole = Some((at, part));
                    own = (part + 1, 0);
                }
                _ => match hole {
                    Some((from, back)) => {
                        hole = Some((from + 1, back));
                        (at, own) = (from + 1, (back + 1, 0));
                    }
                    None => return Ok(false),
                },
            }
        }
        let (part, byte) = own;
        Ok(byte == 0 && self.parts[part..].iter().all(Option::is_none))
    }
}

/// Targets, as paths of URLs, that may lead to a file in some mode of clean URLs.
pub(super) fn target_texts(file: &[u8]) -> Vec<Vec<u8>> {
    let with = |stem: &[u8], end: &[u8]| [stem, end].concat();
    let mut paths = vec![file.to_vec()];
    if file == b"index.html" {
        paths.extend([Vec::new(), b"index".to_vec()]);
    }
    if let Some(stem) = file.strip_suffix(b"/index.html") {
        paths.extend([&b""[..], b"/index", b".html"].map(|end| with(stem, end)));
    }
    if let Some(stem) = file.strip_suffix(b".html") {
        paths.extend([&b""[..], b"/index", b"/index.html"].map(|end| with(stem, end)));
    }
    let texts = paths.iter().flat_map(|path| {
        let rooted = [b"/", path.as_slice()].concat();
        [path.clone(), with(path, b"/"), with(&rooted, b"/"), rooted]
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn shapes_have_holes() {
        let stop = AtomicBool::new(false);
        let mut budget = Budget::new(10_000, &stop);
        let shape = |parts: &[&str]| {
            let part = |text: &&str| (*text != "*").then(|| text.as_bytes().to_vec());
            Shape::new(parts.iter().map(part))
        };
        for (parts, text, fits) in [
            (&["/a"][..], "/a", true),
            (&["/a"], "/ab", false),
            (&["/a/", "*"], "/a/", true),
            (&["/a/", "*"], "/a", false),
            (&["*", "a", "*", "ab"], "aaaab", true),
            (&["*", "a", "*", "ab"], "aba", false),
            (&["*", "*"], "", true),
        ] {
            assert_eq!(
                shape(parts).fits(text.as_bytes(), &mut budget),
                Ok(fits),
                "{parts:?} {text}"
            );
        }
        for (parts, file, leads) in [
            (&["/", "*"][..], "index.html", true),
            (&["/x"], "x/index.html", true),
            (&["/x/index"], "x.html", true),
            (&["/index"], "index.html", true),
            (&["/", "*", "/", "*"], "b.html", true),
            (&["/", "", "/", "*"], "b.html", true),
            (&["/x/", "*"], "b.html", false),
            (&["/x/", "*"], "y.html", false),
        ] {
            let found = shape(parts).may_lead_to(file.as_bytes(), &mut budget);
            assert_eq!(found, Ok(leads), "{parts:?} {file}");
        }
    }

    #[test]
    fn comparing_is_paid_for_by_what_is_compared() {
        let stop = AtomicBool::new(false);
        let part = |part: &str| Some(part.repeat(1000).into_bytes());
        let shape = Shape::new([part("a"), None, part("ab"), None, part("b")]);
        let text = "a".repeat(3000);
        let mut budget = Budget::new(1 << 20, &stop);
        assert_eq!(shape.fits(text.as_bytes(), &mut budget), Ok(false));
        let spent = (1 << 20) - budget.left();
        assert!(spent as usize > text.len() / BYTES_A_STEP, "{spent}");
        assert_eq!(shape.fits(text.as_bytes(), &mut Budget::new(9, &stop)), Err(TooMuch));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(shape.may_lead_to(b"a", &mut budget), Err(TooMuch));
    }

    #[test]
    fn an_escape_that_goes_on_in_what_is_captured_leaves_nothing_known() {
        let stop = AtomicBool::new(false);
        let mut budget = Budget::new(10_000, &stop);
        let captured = |place| Part::Captured { place, splat: true };
        let template =
            |text: &str| Template(vec![Part::Text(text.to_owned()), captured(0), captured(1)]);
        let known = Captures::new(vec![b"1".to_vec()]);
        let of = |text| Shape::of(&template(text), &known);
        // `/%41` is `/A`.
        assert_eq!(of("/%4").may_lead_to(b"A.html", &mut budget), Ok(true));
        assert_eq!(of("/%4").around_hole(), None);
        assert_eq!(of("/%41").may_lead_to(b"B.html", &mut budget), Ok(false));
        assert_eq!(of("/%41").around_hole(), Some((&b"/A1"[..], &b""[..])));
    }
}
