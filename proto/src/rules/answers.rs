//! Every file that a path may be answered with, whoever asks and with whatever query.
//!
//! [`super::decide`] says what answers one request; this says what may answer any request for a path
//! at a host, so that an edge knows which copies an invalidated path is about. It may name too much
//! (a redirect that always leads away is not taken to hide the file behind it), never too little.

use super::decide::{Lookups, Need, not_found_pages, path_of};
use super::html::{self, Resolved};
use super::request::{is_asset, is_loaded, is_page};
use super::template::{Captures, Part, Template, decode};
use super::{Redirect, Rules, is_rule_file, pattern};
use crate::limits;
use crate::site::Dialect;

/// What may answer requests for one path at one host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answers {
    /// Files that exist.
    pub files: Vec<Vec<u8>>,
    /// Paths at which no file exists; one of an earlier deploy may answer.
    pub earlier: Vec<Vec<u8>>,
    /// Rules whose target depends on the query lead to what has such a path.
    pub shapes: Vec<Shape>,
}

/// The path of a target of which parts are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape(pub(super) Vec<Option<Vec<u8>>>);

/// What may answer a path (decoded, without a slash at its ends) at a host.
///
/// # Errors
/// With the path to look up next, when what is known does not suffice.
pub fn answers(
    rules: &Rules,
    (path, directory): (&[u8], bool),
    host: &str,
    known: &impl Lookups,
) -> Result<Answers, Need> {
    let mut exists = |path: &[u8]| {
        if is_rule_file(path) {
            return Ok(false);
        }
        known.exists(path).ok_or_else(|| Need(path.to_vec()))
    };
    let set = &rules.set;
    let asked = pattern::segments(set.dialect, path, directory);
    let mut found = Answers::default();
    let own = html::resolve(set.html, path, directory, &mut exists)?;
    let mut fit = 0;
    for number in rules.redirects.all_candidates(&asked) {
        let Some(rule) = set.redirects.get(number as usize) else { continue };
        let Some(captured) = rule.source.captured(set.dialect, host, &asked) else { continue };
        fit += 1;
        // Where a file comes before the rule. Redirects are answered with no file, and passed over
        // when a long query makes them too long.
        let hidden = set.dialect == Dialect::Netlify && !rule.force && own.is_some();
        if hidden || (301..=308).contains(&rule.status) {
            continue;
        }
        let shape = (places(&rule.target) > captured.len())
            .then(|| Shape::of(&rule.target, Some(&captured)));
        if let Some(shape) = shape {
            found.shapes.push(shape);
            found.earlier.extend((rule.status == 404 && !directory).then(|| path.to_vec()));
            found.missing(path, directory, &mut exists)?;
            continue;
        }
        let Some(url) = rule.target.url(&Captures::new(captured)) else { continue };
        let decides = found.take(rules, rule, (path, directory), &url, &mut exists)?;
        let always = rule.query.is_empty() && rule.languages.is_empty() && rule.cookies.is_empty();
        // Beyond so many a request looks at no more of them.
        if decides && always && fit <= limits::RULE_MATCHES_MAX {
            return Ok(found);
        }
    }
    match own {
        Some(Resolved::File(file)) => found.files.push(file),
        Some(Resolved::Moved { .. }) => {}
        None => {
            if set.spa && !is_asset(path) && exists(b"index.html")? {
                found.files.push(b"index.html".to_vec());
            }
            found.earlier.extend((!directory).then(|| path.to_vec()));
            found.missing(path, directory, &mut exists)?;
        }
    }
    Ok(found)
}

impl Answers {
    /// Adds what a rule that is no redirect answers with; whether it always decides when its
    /// conditions hold.
    fn take(
        &mut self,
        rules: &Rules,
        rule: &Redirect,
        (asked, slash): (&[u8], bool),
        url: &str,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<bool, Need> {
        let (path, directory) = path_of(url);
        let file = html::file_of(rules.set.html, &path, directory, exists)?;
        if rule.status != 200 {
            self.earlier.extend((rule.status == 404 && !slash).then(|| asked.to_vec()));
            match file {
                Some(page) if !is_loaded(asked) => self.files.push(page),
                _ => self.missing(asked, slash, exists)?,
            }
            return Ok(true);
        }
        let Some(file) = file else {
            self.earlier.extend((!directory).then_some(path));
            self.missing(asked, slash, exists)?;
            return Ok(true);
        };
        // As `Question::decide` has it: for pages, and for who navigates.
        let catches_all = rules.set.dialect == Dialect::Netlify
            && rule.source.has_splat()
            && !rule.force
            && is_page(&file);
        let for_pages = catches_all && is_asset(asked);
        if !(for_pages && is_loaded(asked)) {
            self.files.push(file);
        }
        Ok(!for_pages)
    }

    /// Adds the page that says that nothing is there.
    fn missing(
        &mut self,
        path: &[u8],
        directory: bool,
        exists: &mut impl FnMut(&[u8]) -> Result<bool, Need>,
    ) -> Result<(), Need> {
        if is_loaded(path) {
            return Ok(());
        }
        for page in not_found_pages(path, directory) {
            if exists(&page)? {
                self.files.push(page);
                break;
            }
        }
        Ok(())
    }
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
    /// The path a template leads to, with what is captured as far as that is known.
    pub(super) fn of(template: &Template, captured: Option<&[Vec<u8>]>) -> Self {
        let mut parts: Vec<Option<Vec<u8>>> = Vec::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => {
                    let end = text.find(['?', '#']);
                    // What cannot be decoded is not known either.
                    parts.push(decode(&text.as_bytes()[..end.unwrap_or(text.len())]));
                    if end.is_some() {
                        break;
                    }
                }
                Part::Captured { place, .. } => {
                    let own = captured.and_then(|all| all.get(usize::from(*place)));
                    parts.push(own.cloned());
                }
            }
        }
        Self(parts)
    }

    /// Whether a rule that leads to such a path may be answered with this file, in any mode of clean
    /// URLs.
    pub fn may_lead_to(&self, file: &[u8]) -> bool {
        // Of slashes at the beginning of a target one is left: there may have been as many as this
        // has.
        let own = self.0.iter().flatten().flatten().filter(|byte| **byte == b'/').count();
        let begun =
            |text: &[u8]| (0..=own).any(|more| self.fits(&[&vec![b'/'; more], text].concat()));
        target_texts(file).iter().any(|text| match text.starts_with(b"/") {
            true => begun(text),
            false => self.fits(text),
        })
    }

    /// Whether a text is this with something, or nothing, in place of what is not known.
    pub(super) fn fits(&self, text: &[u8]) -> bool {
        // Compared from the left, with the last hole to return to: as for `*` in file names.
        let pattern: Vec<Option<u8>> = self.0.iter().fold(Vec::new(), |mut all, part| {
            match part {
                Some(bytes) => all.extend(bytes.iter().map(|byte| Some(*byte))),
                None => all.push(None),
            }
            all
        });
        let (mut at, mut own, mut hole) = (0, 0, None);
        while at < text.len() {
            match pattern.get(own) {
                Some(Some(byte)) if *byte == text[at] => (at, own) = (at + 1, own + 1),
                Some(None) => {
                    hole = Some((at, own));
                    own += 1;
                }
                _ => match hole {
                    Some((from, back)) => {
                        hole = Some((from + 1, back));
                        (at, own) = (from + 1, back + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[own..].iter().all(Option::is_none)
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
    use super::*;

    #[test]
    fn shapes_have_holes() {
        let shape = |parts: &[&str]| {
            let part = |text: &&str| (*text != "*").then(|| text.as_bytes().to_vec());
            Shape(parts.iter().map(part).collect())
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
            assert_eq!(shape(parts).fits(text.as_bytes()), fits, "{parts:?} {text}");
        }
        assert!(shape(&["/", "*"]).may_lead_to(b"index.html"));
        assert!(shape(&["/x"]).may_lead_to(b"x/index.html"));
        assert!(shape(&["/", "*", "/", "*"]).may_lead_to(b"b.html"));
        assert!(shape(&["/", "", "/", "*"]).may_lead_to(b"b.html"));
        assert!(!shape(&["/x/", "*"]).may_lead_to(b"b.html"));
        assert!(!shape(&["/x/", "*"]).may_lead_to(b"y.html"));
    }
}
