//! The content type of a file, by the extension of its name: the same for a deploy and for a live
//! site.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What a file whose name says nothing is served as.
const UNKNOWN: &str = "application/octet-stream";

/// The value of `Content-Type` for a file of this name. Text is taken to be UTF-8, as HTML says
/// since 2021.
pub fn of(path: &[u8]) -> String {
    let path = Path::new(OsStr::from_bytes(path));
    let Some(guess) = mime_guess::from_path(path).first() else {
        return UNKNOWN.to_owned();
    };
    let essence = match guess.essence_str() {
        // RFC 9239 §6: this is the one name now.
        "application/javascript" => "text/javascript",
        essence => essence,
    };
    if is_text(essence) { format!("{essence}; charset=utf-8") } else { essence.to_owned() }
}

fn is_text(essence: &str) -> bool {
    essence.starts_with("text/")
        || essence.ends_with("+xml")
        || essence.ends_with("+json")
        || matches!(essence, "application/json" | "application/xml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_charset_and_the_rest_has_none() {
        for (name, expected) in [
            ("a/index.html", "text/html; charset=utf-8"),
            ("x.JS", "text/javascript; charset=utf-8"),
            ("x.mjs", "text/javascript; charset=utf-8"),
            ("x.css", "text/css; charset=utf-8"),
            ("x.json", "application/json; charset=utf-8"),
            ("x.svg", "image/svg+xml; charset=utf-8"),
            ("feed.xml", "text/xml; charset=utf-8"),
            ("x.webmanifest", "application/manifest+json; charset=utf-8"),
            ("x.png", "image/png"),
            ("x.woff2", "font/woff2"),
            ("x.wasm", "application/wasm"),
            ("x.pdf", "application/pdf"),
            ("LICENSE", UNKNOWN),
            ("x.unheard-of", UNKNOWN),
            (".html", UNKNOWN),
        ] {
            assert_eq!(of(name.as_bytes()), expected, "{name}");
        }
    }
}
