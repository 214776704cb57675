//! The rules of a deploy, as an edge has them.
//!
//! What answers a path is decided by `atoll_proto::rules`, which `atoll redirects test` uses too.
//! Here is what an edge adds: decoded rules at hand ([`book`]), what they say of one request
//! ([`ask`]), which files of earlier deploys may answer ([`asset`]), and the files an invalidated
//! path may mean.

pub mod ask;
pub mod asset;
pub mod book;

use crate::http::path::SitePath;

/// The files that may answer a path without any rule, in any mode of clean URLs. Called for
/// invalidations, which mean all of them.
pub fn candidates(asked: &SitePath) -> Vec<Vec<u8>> {
    let with = |suffix: &[u8]| [asked.path.as_slice(), suffix].concat();
    if asked.path.is_empty() {
        return vec![with(b"index.html")];
    }
    let mut files = vec![with(b"/index.html"), with(b".html")];
    if !asked.directory {
        files.insert(0, with(b""));
    }
    files
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::http::path::parse;

    #[test]
    fn a_path_may_mean_several_files() {
        let names = |raw: &str| -> Vec<String> {
            let asked = parse(raw.as_bytes()).unwrap();
            candidates(&asked).into_iter().map(|file| String::from_utf8(file).unwrap()).collect()
        };
        assert_eq!(names("/"), ["index.html"]);
        assert_eq!(names("/docs/"), ["docs/index.html", "docs.html"]);
        assert_eq!(names("/docs/api"), ["docs/api", "docs/api/index.html", "docs/api.html"]);
    }
}
