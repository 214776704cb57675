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
    /// What kind of answer is of use.
    pub wants: Wants,
}

/// What kind of answer is of use to who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wants {
    /// A page: it navigates, or it may well be a person with a tool, and the path does not look
    /// like a script's, an image's or the like.
    pub html: bool,
    /// It navigates: a person follows a link or types an address.
    pub navigation: bool,
}

/// The headers of a request by which [`wants`] judges.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signals<'a> {
    /// `Accept`.
    pub accept: Option<&'a str>,
    /// `Sec-Fetch-Mode`.
    pub fetch_mode: Option<&'a str>,
    /// `Sec-Fetch-Dest`.
    pub fetch_dest: Option<&'a str>,
}

/// What a request for this path, with these headers, has a use for.
pub fn wants(signals: Signals<'_>, path: &[u8]) -> Wants {
    let named = signals.accept.is_some_and(|accept| {
        accept.split([',', ';']).any(|kind| {
            let kind = kind.trim();
            kind.eq_ignore_ascii_case("text/html")
                || kind.eq_ignore_ascii_case("application/xhtml+xml")
        })
    });
    // A browser that says how it fetches is believed; others go by what they accept.
    let navigation = signals.fetch_mode.map_or(named, |mode| mode == "navigate");
    let asset = is_asset(path);
    let html = match signals.fetch_dest {
        Some(dest) => navigation || matches!(dest, "document" | "iframe" | "frame"),
        None => navigation || named || !asset,
    };
    Wants { html, navigation }
}

/// Whether a path has the extension of a file that is no page: the last name has something after
/// a dot, with a letter in it, that is not `html`.
pub fn is_asset(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
    let extension = &name[dot + 1..];
    let plain = extension.iter().all(u8::is_ascii_alphanumeric);
    let letter = extension.iter().any(u8::is_ascii_alphabetic);
    let page = [&b"html"[..], b"htm"].iter().any(|page| extension.eq_ignore_ascii_case(page));
    dot > 0 && plain && letter && !page && extension.len() <= 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn navigations_are_told_from_what_pages_load() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let judge = |accept, mode, dest, path: &str| {
            let signals = Signals { accept, fetch_mode: mode, fetch_dest: dest };
            let wants = wants(signals, path.as_bytes());
            (wants.html, wants.navigation)
        };
        let some = Some;
        for (accept, mode, dest, path, expected) in [
            (some(browser), None, None, "a/b", (true, true)),
            (some(browser), some("navigate"), some("document"), "a.js", (true, true)),
            (some("*/*"), some("no-cors"), some("script"), "a/app.js", (false, false)),
            (some("*/*"), some("cors"), some("empty"), "api/users", (false, false)),
            (some("text/css,*/*;q=0.1"), None, None, "a.css", (false, false)),
            (some("*/*"), None, None, "missing", (true, false)),
            (some("*/*"), None, None, "missing.js", (false, false)),
            (None, None, None, "missing.html", (true, false)),
            (None, None, None, "v1.2", (true, false)),
            (some("TEXT/HTML"), None, None, "", (true, true)),
        ] {
            assert_eq!(judge(accept, mode, dest, path), expected, "{accept:?} {mode:?} {path}");
        }
        assert!(!is_asset(b".well-known/x") && !is_asset(b"a/.env") && is_asset(b"a/b.min.js"));
    }
}
