//! What a page that is open already asks for: pure functions of names and types.
//!
//! Called by [`crate::index::earlier_file`] for paths that the current deploy does not have. A page
//! that was loaded before the last publish goes on asking for the scripts it knows: an earlier
//! deploy may answer for those, but never with a page.

use atoll_proto::manifest::Entry;
use atoll_proto::name::RULE_FILES;
use atoll_proto::rules::request;

/// Types of pages.
const PAGE_TYPES: &[&str] = &["text/html", "application/xhtml+xml"];

/// Whether an earlier deploy may have the file at this path: not for pages and what configures a
/// site.
pub fn may_be_earlier(path: &[u8]) -> bool {
    !request::is_page(path) && !RULE_FILES.contains(&path)
}

/// Whether an earlier deploy may answer with this file of its.
pub fn entry_may_be_earlier(entry: &Entry) -> bool {
    may_be_earlier(entry.path.as_bytes()) && !is_page(&entry.content_type)
}

/// Whether a file of this type is a page.
pub fn is_page(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    PAGE_TYPES.iter().any(|page| kind.eq_ignore_ascii_case(page))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::http::path::parse;

    #[test]
    fn pages_and_configuration_are_of_the_current_deploy_alone() {
        let may = |raw: &str| may_be_earlier(&parse(raw.as_bytes()).unwrap().path);
        for raw in
            ["/app.js", "/a/b.3f9a0c1d.css", "/photo.jpg", "/data", "/a/_headers", "/x.html.js"]
        {
            assert!(may(raw), "{raw}");
        }
        for raw in ["/a.html", "/A.HTM", "/b.xhtml", "/_headers", "/_redirects", "/%2Ehtml"] {
            assert!(!may(raw), "{raw}");
        }
    }

    #[test]
    fn types_of_pages_have_parameters_and_any_case() {
        for kind in ["text/html", "Text/HTML; charset=utf-8", " application/xhtml+xml ;x"] {
            assert!(is_page(kind), "{kind}");
        }
        for kind in ["", "text/javascript", "text/htmlish", "application/xml"] {
            assert!(!is_page(kind), "{kind}");
        }
    }
}
