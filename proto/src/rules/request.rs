//! What the rules look at of a request.

/// The path and what else decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Decoded, without a slash at its ends; empty for the site's root.
    pub path: Vec<u8>,
    /// Whether the path ended in a slash.
    pub directory: bool,
    /// The host asked for, in lower case, without a port.
    pub host: String,
    /// The query as it came, without the question mark.
    pub query: Option<String>,
    /// Whether a person follows a link or types an address: see [`navigates`].
    pub navigation: bool,
    /// Who asks. Only rules with conditions look at it.
    pub visitor: Visitor,
}

/// Most languages of `Accept-Language`, and most cookies, that are looked at.
const NAMED_MAX: usize = 256;

/// What rules with conditions know of a visitor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visitor {
    /// The language preferred to all others, in lower case: `de-at`.
    pub language: Option<String>,
    /// The names of the cookies sent along.
    pub cookies: Vec<String>,
}

impl Visitor {
    /// Reads the values of `Accept-Language` (RFC 9110 §12.5.4) and of every `Cookie`
    /// (RFC 6265 §4.2).
    pub fn new<'a>(
        accept_language: Option<&str>,
        cookies: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let names = cookies.into_iter().flat_map(|value| value.split(';'));
        let names = names.filter_map(|pair| Some(pair.split_once('=')?.0.trim().to_owned()));
        Self {
            language: accept_language.and_then(preferred),
            cookies: names.take(NAMED_MAX).collect(),
        }
    }

    /// Whether the preferred language is this one, or a regional kind of it: `de-AT` is `de`.
    pub fn speaks(&self, language: &str) -> bool {
        let rest = self.language.as_deref().and_then(|own| own.strip_prefix(language));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// The language with the highest weight; of several the first.
fn preferred(accept_language: &str) -> Option<String> {
    let mut best: Option<(u16, &str)> = None;
    for range in accept_language.split(',').take(NAMED_MAX) {
        let (tag, weight) = match range.split_once(';') {
            Some((tag, weight)) => (tag.trim(), thousandths(weight.trim())),
            None => (range.trim(), 1000),
        };
        let named = !tag.is_empty() && tag != "*" && weight > 0;
        if named && best.is_none_or(|(before, _)| weight > before) {
            best = Some((weight, tag));
        }
    }
    best.map(|(_, tag)| tag.to_ascii_lowercase())
}

/// A weight such as `q=0.75`; what is malformed has none.
fn thousandths(weight: &str) -> u16 {
    let Some(value) = weight.strip_prefix("q=").or_else(|| weight.strip_prefix("Q=")) else {
        return 0;
    };
    match value.parse::<f32>() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        Ok(value) if (0.0..=1.0).contains(&value) => (value * 1000.0) as u16,
        _ => 0,
    }
}

/// Whether a request with these values of `Accept` and `Sec-Fetch-Mode` navigates. A browser that
/// says how it fetches is believed; others go by what they accept.
pub fn navigates(accept: Option<&str>, fetch_mode: Option<&str>) -> bool {
    let page = |kind: &str| {
        let kind = kind.trim();
        kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
    };
    let named = || accept.is_some_and(|accept| accept.split([',', ';']).any(page));
    fetch_mode.map_or_else(named, |mode| mode == "navigate")
}

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

/// Whether pages load what has this path by themselves: scripts, styles, fonts, data. Nothing but
/// the name decides, so that a URL has one answer.
pub fn is_loaded(path: &[u8]) -> bool {
    let Some(extension) = extension(path) else { return false };
    LOADED.iter().any(|known| extension.eq_ignore_ascii_case(known.as_bytes()))
}

/// Whether a path has the extension of a page.
pub fn is_page(path: &[u8]) -> bool {
    let pages = [&b"html"[..], b"htm", b"xhtml", b"xht"];
    extension(path).is_some_and(|own| pages.iter().any(|page| own.eq_ignore_ascii_case(page)))
}

/// Whether a path has the extension of a file that is no page: the last name has something after
/// a dot, with a letter in it, that is not `html` or the like.
pub fn is_asset(path: &[u8]) -> bool {
    let Some(extension) = extension(path) else { return false };
    let hidden =
        path.len() == extension.len() + 1 || path[path.len() - extension.len() - 2] == b'/';
    let plain = extension.iter().all(u8::is_ascii_alphanumeric);
    let letter = extension.iter().any(u8::is_ascii_alphabetic);
    !hidden && plain && letter && !is_page(path) && extension.len() <= 16
}

/// What follows the last dot of the last name.
fn extension(path: &[u8]) -> Option<&[u8]> {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let dot = name.iter().rposition(|byte| *byte == b'.')?;
    Some(&name[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn navigations_are_told_from_what_pages_load() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, mode, expected) in [
            (Some(browser), None, true),
            (Some(browser), Some("navigate"), true),
            (Some("*/*"), Some("no-cors"), false),
            (Some(browser), Some("cors"), false),
            (Some("text/css,*/*;q=0.1"), None, false),
            (Some("*/*"), None, false),
            (None, None, false),
            (Some("TEXT/HTML"), None, true),
        ] {
            assert_eq!(navigates(accept, mode), expected, "{accept:?} {mode:?}");
        }
    }

    #[test]
    fn names_tell_what_is_no_page() {
        for path in ["a/b.min.js", "a.css", "john.doe", "x.MP4"] {
            assert!(is_asset(path.as_bytes()), "{path}");
        }
        for path in ["", "a", ".env", "a/.env", ".well-known/x", "v1.2", "a.html", "a.HTM", "a."] {
            assert!(!is_asset(path.as_bytes()), "{path}");
        }
        assert!(
            is_page(b"a/b.HTML") && is_page(b".html") && !is_page(b"html") && !is_page(b"a.js")
        );
        for path in ["/app.js", "/a/b.MJS", "app.css.map", "f.woff2"] {
            assert!(is_loaded(path.as_bytes()), "{path}");
        }
        for path in ["", "/", "/js", "/a.js/", "/about", "/photo.jpg", "/a.html", "/a."] {
            assert!(!is_loaded(path.as_bytes()), "{path}");
        }
        assert!(is_loaded(b"\xff.js"));
    }

    #[test]
    fn the_language_preferred_to_all_others() {
        for (value, expected) in [
            ("de", Some("de")),
            ("de-AT, de;q=0.9, en;q=0.8", Some("de-at")),
            ("en;q=0.5, fr;q=0.7, de;q=0.6", Some("fr")),
            ("*, en;q=0", None),
            ("en;q=x, de;q=0.1", Some("de")),
            ("en;q=NaN,da;q=2", None),
            (",, ;q=1,", None),
            ("", None),
        ] {
            assert_eq!(preferred(value).as_deref(), expected, "{value}");
        }
        let visitor = Visitor::new(Some("de-AT"), ["a=1; b = 2;c", "d="]);
        assert!(visitor.speaks("de") && visitor.speaks("de-at"));
        assert!(!visitor.speaks("d") && !visitor.speaks("de-a") && !visitor.speaks("en"));
        assert_eq!(visitor.cookies, ["a", "b", "d"]);
        assert!(!Visitor::default().speaks("de"));
    }
}
