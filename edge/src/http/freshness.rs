//! What `Cache-Control` says when the site has no rule of its own for a file.
//!
//! Pure: called by [`super::respond`]. Pages are asked for again each time, so that a publish is
//! seen at once; files whose name holds a fingerprint of their content never change under that
//! name. A name is only taken for fingerprinted when it is hard to mistake: being wrong costs a
//! visitor a year of a stale file, being careful costs a 304.

/// Kinds of files that build tools put fingerprints into.
const FINGERPRINTED: &[&str] = &[
    "avif", "css", "eot", "gif", "ico", "jpeg", "jpg", "js", "map", "mjs", "mp4", "otf", "png",
    "svg", "ttf", "wasm", "webm", "webp", "woff", "woff2",
];

const REVALIDATE: &str = "public, max-age=0, must-revalidate";
const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// The value of `Cache-Control` for the file at `path`.
pub fn cache_control(path: &[u8]) -> &'static str {
    if is_fingerprinted(path) { IMMUTABLE } else { REVALIDATE }
}

/// The same for an answer that never changes, because its host names a deploy. What a rule of the
/// site says stays.
pub fn unchanging(said: &str) -> &str {
    if said == REVALIDATE { IMMUTABLE } else { said }
}

/// Names such as `app.3f9a0c1d.js` (8 or more hex digits between dots) and `index-BX3k2_aq.css`
/// (8 letters, digits or `_` after the last dash), with both a letter and a digit.
fn is_fingerprinted(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let Ok(name) = std::str::from_utf8(name) else {
        return false;
    };
    // Source maps carry the fingerprint before the extension of what they map.
    let name = name.strip_suffix(".map").unwrap_or(name);
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return false;
    };
    if !FINGERPRINTED.contains(&extension.to_ascii_lowercase().as_str()) {
        return false;
    }
    let mixed = |text: &str| {
        text.bytes().any(|byte| byte.is_ascii_digit())
            && text.bytes().any(|byte| byte.is_ascii_alphabetic())
    };
    let hex = |text: &str| text.len() >= 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let token = |text: &str| {
        text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let dotted = stem.rsplit_once('.').is_some_and(|(_, part)| hex(part) && mixed(part));
    let dashed =
        stem.rsplit_once('-').is_some_and(|(_, part)| (token(part) || hex(part)) && mixed(part));
    dotted || dashed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_changes_need_not_be_asked_for_again() {
        assert_eq!(unchanging(cache_control(b"index.html")), IMMUTABLE);
        assert_eq!(unchanging(IMMUTABLE), IMMUTABLE);
        assert_eq!(unchanging("no-store"), "no-store");
    }

    #[test]
    fn only_clear_fingerprints_are_immutable() {
        for name in [
            "app.3f9a0c1d.js",
            "assets/index-BX3k2_aq.css",
            "a/b/logo.0123456789abcdef.svg",
            "main-0123456789abcdef.js",
            "chunk.3f9a0c1d.js.map",
            "font-aB3dE6gH.woff2",
        ] {
            assert_eq!(cache_control(name.as_bytes()), IMMUTABLE, "{name}");
        }
        for name in [
            "index.html",
            "page-3f9a0c1d.html",
            "app.js",
            "photo-vacation.jpg",
            "scan-20240131.png",
            "app.20240131.js",
            "app.1.2.3.js",
            "report-3f9a0c1d.pdf",
            "app.deadbeef.txt",
            "3f9a0c1d.js",
            "",
            "a.",
            ".js",
        ] {
            assert_eq!(cache_control(name.as_bytes()), REVALIDATE, "{name}");
        }
        assert_eq!(cache_control(b"\xff-3f9a0c1d.js"), REVALIDATE);
    }
}
