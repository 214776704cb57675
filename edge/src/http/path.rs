//! From the path of a request to the path of a file: decoded once, checked, nothing else.
//!
//! Called by [`super::respond`]. Which file answers a path (`index.html`, clean URLs, `404.html`)
//! is decided by `atoll_proto::rules`. The query is no business of this module.

use atoll_proto::limits;

/// The decoded path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePath {
    /// Bytes without slash at the start or the end; empty for the site's root.
    pub path: Vec<u8>,
    /// Whether the request named a directory: it ended in a slash.
    pub directory: bool,
}

/// Why a path names no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// The request is wrong, for this reason: 400.
    Malformed(&'static str),
    /// Longer than the path of any file, or the root with slashes too many: 404.
    Impossible,
}

/// Decodes and checks the path of a request target, which starts with a slash.
///
/// # Errors
/// `Malformed` for an incomplete escape, NUL or a `..` segment, encoded or not; `Impossible` for
/// lengths no file can have. No file has a path with empty or `.` segments or with one that is too
/// long either, but rules may be about it.
pub fn parse(raw: &[u8]) -> Result<SitePath, BadPath> {
    let Some(raw) = raw.strip_prefix(b"/") else {
        return Err(BadPath::Malformed("the path must start with '/'"));
    };
    let decoded = decode(raw)?;
    if decoded.contains(&0) {
        return Err(BadPath::Malformed("the path holds a NUL byte"));
    }
    if decoded.split(|byte| *byte == b'/').any(|segment| segment == b"..") {
        return Err(BadPath::Malformed("the path holds a '..' segment"));
    }
    if decoded.is_empty() {
        return Ok(SitePath { path: decoded, directory: true });
    }
    let directory = decoded.ends_with(b"/");
    let mut path = decoded;
    if directory {
        path.pop();
    }
    if path.len() > limits::SITE_PATH_BYTES_MAX || path.is_empty() {
        return Err(BadPath::Impossible);
    }
    Ok(SitePath { path, directory })
}

fn decode(raw: &[u8]) -> Result<Vec<u8>, BadPath> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        if *byte != b'%' {
            decoded.push(*byte);
            at += 1;
            continue;
        }
        let (Some(high), Some(low)) = (digit(raw.get(at + 1)), digit(raw.get(at + 2))) else {
            return Err(BadPath::Malformed("the path holds a malformed '%' escape"));
        };
        decoded.push(u8::try_from(high * 16 + low).expect("two hex digits fit a byte"));
        at += 3;
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::rules::template::{Within, encode};
    use proptest::prelude::*;

    use super::*;

    fn file(path: &[u8]) -> Result<SitePath, BadPath> {
        Ok(SitePath { path: path.to_vec(), directory: false })
    }

    fn dir(path: &[u8]) -> Result<SitePath, BadPath> {
        Ok(SitePath { path: path.to_vec(), directory: true })
    }

    #[test]
    fn paths_are_decoded_once() {
        let cases: &[(&str, Result<SitePath, BadPath>)] = &[
            ("/", dir(b"")),
            ("/a", file(b"a")),
            ("/a/b.html", file(b"a/b.html")),
            ("/a/", dir(b"a")),
            ("/a%20b%23%3F%25", file(b"a b#?%")),
            ("/%2541", file(b"%41")),
            ("/a%2Fb", file(b"a/b")),
            ("/%ff%FE", file(b"\xff\xfe")),
            ("/a\\..\\b", file(b"a\\..\\b")),
            ("/...", file(b"...")),
            ("/a+b", file(b"a+b")),
            ("/a%0Ab", file(b"a\nb")),
        ];
        for (raw, expected) in cases {
            assert_eq!(&parse(raw.as_bytes()), expected, "{raw}");
        }
    }

    #[test]
    fn what_is_wrong_is_400_and_what_cannot_be_is_404() {
        for raw in [
            "",
            "a",
            "*",
            "/%",
            "/%4",
            "/%4g",
            "/%g4",
            "/a%00",
            "/..",
            "/../a",
            "/a/..",
            "/a/../b",
            "/%2e%2e/a",
            "/a/%2E.",
            "/a%2f..%2fb",
            "/a/..%2F",
            "/%2e%2e%2f",
        ] {
            assert!(matches!(parse(raw.as_bytes()), Err(BadPath::Malformed(_))), "{raw}");
        }
        let long = format!("/{}", "a".repeat(256));
        let deep = format!("/{}", "a/".repeat(3000));
        for raw in ["//", &deep] {
            assert_eq!(parse(raw.as_bytes()), Err(BadPath::Impossible), "{raw}");
        }
        // No file has these, but rules may be about them.
        for raw in ["//a", "/a//b", "/a//", "/./a", "/a/.", "/.", "//evil.example/", &long] {
            let parsed = parse(raw.as_bytes()).unwrap();
            assert!(atoll_proto::name::check_site_path(&parsed.path).is_err(), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(parsed) = parse(&raw)
                && (parsed.path.is_empty() || atoll_proto::name::check_site_path(&parsed.path).is_ok())
            {
                let mut url = "/".to_owned();
                encode(&parsed.path, Within::Path, &mut url);
                prop_assert_eq!(parse(url.as_bytes()).unwrap().path, parsed.path);
            }
        }

        #[test]
        fn every_site_path_can_be_asked_for(
            parts in proptest::collection::vec(proptest::collection::vec(1u8.., 1..20), 1..5)
        ) {
            let path = parts.join(&b'/');
            prop_assume!(atoll_proto::name::check_site_path(&path).is_ok());
            let mut raw = "/".to_owned();
            encode(&path, Within::Query, &mut raw);
            prop_assert_eq!(parse(raw.as_bytes()).unwrap().path, path);
        }
    }
}
