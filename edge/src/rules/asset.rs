//! What a page that is open already asks for: pure functions of names and types.
//!
//! Called by [`crate::http::respond`] for paths that the current deploy does not have. A page that
//! was loaded before the last publish goes on asking for the scripts it knows: an earlier deploy
//! may answer for those, but never with a page. And where nobody has it, the answer must not look
//! like a page either.

use atoll_proto::name::RULE_FILES;

use crate::http::path::SitePath;

/// Extensions of files that pages load by themselves and that are of no use to them as HTML.
const LOADED: &[&str] = &[
    "cjs",
    "css",
    "eot",
    "js",
    "json",
    "map",
    "mjs",
    "otf",
    "ttf",
    "wasm",
    "webmanifest",
    "woff",
    "woff2",
];
/// Extensions of pages.
const PAGES: &[&str] = &["htm", "html", "xht", "xhtml"];
/// Types of pages.
const PAGE_TYPES: &[&str] = &["text/html", "application/xhtml+xml"];

/// Whether an earlier deploy may answer a request for this path: not for directories, pages and
/// what configures a site.
pub fn may_be_earlier(asked: &SitePath) -> bool {
    let path = asked.path.as_slice();
    !asked.directory && !has_extension(path, PAGES) && !RULE_FILES.contains(&path)
}

/// Whether a file of this type is a page.
pub fn is_page(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    PAGE_TYPES.iter().any(|page| kind.eq_ignore_ascii_case(page))
}

/// Whether pages load what has this path by themselves: scripts, styles, fonts, data.
pub fn is_loaded(path: &[u8]) -> bool {
    has_extension(path, LOADED)
}

fn has_extension(path: &[u8], extensions: &[&str]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
    let extension = &name[dot + 1..];
    extensions.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::http::path::parse;

    #[test]
    fn pages_directories_and_configuration_are_of_the_current_deploy_alone() {
        let may = |raw: &str| may_be_earlier(&parse(raw.as_bytes()).unwrap());
        for raw in
            ["/app.js", "/a/b.3f9a0c1d.css", "/photo.jpg", "/data", "/a/_headers", "/x.html.js"]
        {
            assert!(may(raw), "{raw}");
        }
        for raw in
            ["/", "/a/", "/a.html", "/A.HTM", "/b.xhtml", "/_headers", "/_redirects", "/%2Ehtml"]
        {
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

    #[test]
    fn what_pages_load_is_told_by_its_extension() {
        for path in ["/app.js", "/a/b.MJS", "app.css.map", "f.woff2"] {
            assert!(is_loaded(path.as_bytes()), "{path}");
        }
        for path in ["", "/", "/js", "/a.js/", "/about", "/photo.jpg", "/a.html", "/a."] {
            assert!(!is_loaded(path.as_bytes()), "{path}");
        }
        assert!(is_loaded(b"\xff.js"));
    }
}
