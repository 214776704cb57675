//! Which file answers a path: pure functions of names.
//!
//! Called by [`crate::http::respond`], which looks the names up in the deploy's manifest. The
//! rules so far: the exact file, `index.html` of a directory, a redirect to a directory that is
//! named without its slash, clean URLs (`/about` is `about.html`), and the nearest `404.html`.

pub mod asset;

use crate::http::path::SitePath;

/// Directories that are searched for a `404.html`, counted from the site's root.
const NOT_FOUND_DEPTH_MAX: usize = 32;

/// What to do when a file exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve it.
    Serve,
    /// Redirect to the same path with a slash at the end.
    RedirectToDirectory,
}

/// A file that may answer, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Path of the file within the site.
    pub file: Vec<u8>,
    /// What to do when it exists.
    pub action: Action,
}

/// The files that may answer a path; the first that exists does.
pub fn candidates(asked: &SitePath) -> Vec<Candidate> {
    let with = |suffix: &[u8]| [asked.path.as_slice(), suffix].concat();
    let candidate = |file, action| Candidate { file, action };
    if asked.path.is_empty() {
        return vec![candidate(b"index.html".to_vec(), Action::Serve)];
    }
    let index = with(b"/index.html");
    if asked.directory {
        return vec![candidate(index, Action::Serve)];
    }
    vec![
        candidate(asked.path.clone(), Action::Serve),
        candidate(index, Action::RedirectToDirectory),
        candidate(with(b".html"), Action::Serve),
    ]
}

/// The pages that may say that a path does not exist, nearest first.
pub fn not_found_pages(asked: &SitePath) -> Vec<Vec<u8>> {
    let mut directories = vec![&b""[..]];
    for (at, byte) in asked.path.iter().enumerate() {
        if directories.len() == NOT_FOUND_DEPTH_MAX {
            break;
        }
        if *byte == b'/' {
            directories.push(&asked.path[..=at]);
        }
    }
    let mut pages: Vec<Vec<u8>> =
        directories.iter().map(|directory| [*directory, b"404.html"].concat()).collect();
    if asked.directory && !asked.path.is_empty() && pages.len() < NOT_FOUND_DEPTH_MAX {
        pages.push([asked.path.as_slice(), b"/404.html"].concat());
    }
    pages.reverse();
    pages
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::http::path::parse;

    fn names(raw: &str) -> Vec<(String, Action)> {
        let asked = parse(raw.as_bytes()).unwrap();
        let name = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        candidates(&asked).into_iter().map(|c| (name(c.file), c.action)).collect()
    }

    fn pages(raw: &str) -> Vec<String> {
        let asked = parse(raw.as_bytes()).unwrap();
        not_found_pages(&asked).into_iter().map(|page| String::from_utf8(page).unwrap()).collect()
    }

    #[test]
    fn files_directories_and_clean_urls() {
        use Action::{RedirectToDirectory, Serve};
        let of = |list: &[(&str, Action)]| -> Vec<(String, Action)> {
            list.iter().map(|(name, action)| ((*name).to_owned(), *action)).collect()
        };
        assert_eq!(names("/"), of(&[("index.html", Serve)]));
        assert_eq!(names("/docs/"), of(&[("docs/index.html", Serve)]));
        let expected = [
            ("docs/api", Serve),
            ("docs/api/index.html", RedirectToDirectory),
            ("docs/api.html", Serve),
        ];
        assert_eq!(names("/docs/api"), of(&expected));
    }

    #[test]
    fn the_nearest_404_page_comes_first() {
        assert_eq!(pages("/"), ["404.html"]);
        assert_eq!(pages("/a"), ["404.html"]);
        assert_eq!(pages("/a/b/c"), ["a/b/404.html", "a/404.html", "404.html"]);
        assert_eq!(pages("/a/b/"), ["a/b/404.html", "a/404.html", "404.html"]);
        assert_eq!(pages(&format!("/{}", "a/".repeat(200))).len(), NOT_FOUND_DEPTH_MAX);
    }
}
