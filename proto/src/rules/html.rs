//! URLs of pages: `.html`, `index.html` and final slashes, in the four modes of Cloudflare's
//! `html_handling`.
//!
//! Every page has one canonical URL in a mode. A request for another of its URLs is redirected
//! there, unless that URL would answer with another file; then the page is served under its own
//! name. A fifth mode, `lenient`, serves every file under its own name, and pages under clean URLs
//! besides.

use crate::site::HtmlHandling::{
    self, AutoTrailingSlash, DropTrailingSlash, ForceTrailingSlash, Lenient,
};

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// This file.
    File(Vec<u8>),
    /// Another URL of the site.
    Moved {
        /// Decoded, without a slash at its ends.
        path: Vec<u8>,
        /// Whether it ends in a slash.
        directory: bool,
    },
}

/// A URL's path: decoded, without a slash at its ends, and whether it had one at the end.
type Url = (Vec<u8>, bool);

/// Finds what answers a path; `None` when nothing does. `exists` says whether the site has a file,
/// and may fail when that is not known yet.
///
/// # Errors
/// Those of `exists`.
pub fn resolve<E>(
    mode: HtmlHandling,
    path: &[u8],
    directory: bool,
    exists: &mut impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<Option<Resolved>, E> {
    let asked: Url = (path.to_vec(), directory || path.is_empty());
    if mode == Lenient {
        return lenient(path, asked.1, exists);
    }
    for file in files_of(mode, &asked) {
        if !exists(&file)? {
            continue;
        }
        let canonical = canonical(mode, &file);
        if canonical == asked {
            return Ok(Some(Resolved::File(file)));
        }
        let mut leads = None;
        for served in served_at(mode, &canonical) {
            if exists(&served)? {
                leads = Some(served);
                break;
            }
        }
        if leads.as_ref() == Some(&file) {
            let (path, directory) = canonical;
            return Ok(Some(Resolved::Moved { path, directory }));
        }
        if file == path && !asked.1 {
            return Ok(Some(Resolved::File(file)));
        }
    }
    Ok(None)
}

/// Every file under its own name, and pages under clean URLs besides: a directory is redirected to
/// its final slash, a page without `.html` is served as it is.
fn lenient<E>(
    path: &[u8],
    directory: bool,
    exists: &mut impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<Option<Resolved>, E> {
    let with = |suffix: &[u8]| [path, suffix].concat();
    if path.is_empty() {
        let index = b"index.html";
        return Ok(exists(index)?.then(|| Resolved::File(index.to_vec())));
    }
    let index = with(b"/index.html");
    if directory {
        return Ok(exists(&index)?.then_some(Resolved::File(index)));
    }
    if exists(path)? {
        return Ok(Some(Resolved::File(path.to_vec())));
    }
    if exists(&index)? {
        return Ok(Some(Resolved::Moved { path: path.to_vec(), directory: true }));
    }
    let page = with(b".html");
    Ok(exists(&page)?.then_some(Resolved::File(page)))
}

/// The file a rewrite to a URL answers with: the one a visitor of that URL ends at, else another that
/// it may mean in any mode.
///
/// # Errors
/// Those of `exists`.
pub fn file_of<E>(
    mode: HtmlHandling,
    path: &[u8],
    directory: bool,
    exists: &mut impl FnMut(&[u8]) -> Result<bool, E>,
) -> Result<Option<Vec<u8>>, E> {
    let mut found = resolve(mode, path, directory, exists)?;
    if let Some(Resolved::Moved { path, directory }) = found {
        // Redirects to canonical URLs lead to the end at once.
        found = resolve(mode, &path, directory, exists)?;
    }
    if let Some(Resolved::File(file)) = found {
        return Ok(Some(file));
    }
    let with = |suffix: &[u8]| [path, suffix].concat();
    let files = match (path.is_empty(), directory) {
        (true, _) => vec![b"index.html".to_vec()],
        (false, true) => vec![with(b"/index.html"), with(b".html")],
        (false, false) => vec![path.to_vec(), with(b".html"), with(b"/index.html")],
    };
    for file in files {
        if exists(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The files that a URL may be another name of, likeliest first.
fn files_of(mode: HtmlHandling, (path, directory): &Url) -> Vec<Vec<u8>> {
    let with = |stem: &[u8], suffix: &[u8]| [stem, suffix].concat();
    let page = |stem: &[u8]| with(stem, b".html");
    let index = |stem: &[u8]| {
        if stem.is_empty() { b"index.html".to_vec() } else { with(stem, b"/index.html") }
    };
    if mode == HtmlHandling::None {
        return if *directory { Vec::new() } else { vec![path.clone()] };
    }
    if path.is_empty() {
        return vec![index(b"")];
    }
    if *directory {
        return match mode {
            DropTrailingSlash => vec![page(path), index(path)],
            _ => vec![index(path), page(path)],
        };
    }
    let mut files = vec![path.clone()];
    let stem_of = |name: &[u8]| match path.strip_suffix(name) {
        Some(b"") => Some(&b""[..]),
        Some(rest) => rest.strip_suffix(b"/"),
        None => None,
    };
    if let Some(stem) = stem_of(b"index") {
        files.push(index(stem));
        files.extend((!stem.is_empty()).then(|| page(stem)));
    } else if let Some(stem) = stem_of(b"index.html") {
        files.extend((!stem.is_empty()).then(|| page(stem)));
    } else if let Some(stem) = page_stem(path) {
        files.push(index(stem));
    }
    files.extend([page(path), index(path)]);
    files
}

/// The URL a file is served at.
fn canonical(mode: HtmlHandling, file: &[u8]) -> Url {
    if mode == HtmlHandling::None {
        return (file.to_vec(), false);
    }
    if file == b"index.html" {
        return (Vec::new(), true);
    }
    if let Some(stem) = file.strip_suffix(b"/index.html") {
        return (stem.to_vec(), mode != DropTrailingSlash);
    }
    match page_stem(file) {
        Some(stem) => (stem.to_vec(), mode == ForceTrailingSlash),
        None => (file.to_vec(), false),
    }
}

/// What the name of a page is without `.html`.
fn page_stem(file: &[u8]) -> Option<&[u8]> {
    file.strip_suffix(b".html").filter(|stem| !stem.is_empty() && !stem.ends_with(b"/"))
}

/// The files served at a URL without redirecting, first come first.
fn served_at(mode: HtmlHandling, (path, directory): &Url) -> Vec<Vec<u8>> {
    let with = |suffix: &[u8]| [path.as_slice(), suffix].concat();
    if path.is_empty() {
        return vec![b"index.html".to_vec()];
    }
    match (mode, *directory) {
        (AutoTrailingSlash, true) => vec![with(b"/index.html")],
        (AutoTrailingSlash, false) => vec![path.clone(), with(b".html")],
        (ForceTrailingSlash, true) => vec![with(b"/index.html"), with(b".html")],
        (ForceTrailingSlash | HtmlHandling::None, false) => vec![path.clone()],
        (DropTrailingSlash, false) => vec![path.clone(), with(b".html"), with(b"/index.html")],
        (DropTrailingSlash | HtmlHandling::None, true) | (Lenient, _) => Vec::new(),
    }
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
