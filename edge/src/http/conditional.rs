//! Preconditions of RFC 9110 §13: `If-Match`, `If-None-Match`, `If-Modified-Since`,
//! `If-Unmodified-Since` and `If-Range`, with their precedence.
//!
//! Pure: called by [`super::respond`] with what is known of the selected file. The caller asks
//! only where the answer would be 200 without preconditions (§13.2.1), so never for a 404 page.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};

/// What is known of the selected representation.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// Its strong entity tag, with the quotes.
    pub etag: &'a str,
    /// When it last changed, in whole seconds.
    pub last_modified: SystemTime,
}

/// What the preconditions say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answer as if there were none.
    Proceed,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates the preconditions of a GET or HEAD in the order of RFC 9110 §13.2.2.
pub fn evaluate(headers: &HeaderMap, is: Validators<'_>) -> Outcome {
    if headers.contains_key(header::IF_MATCH) {
        if !any_tag(headers, &header::IF_MATCH, |tag| strong_eq(tag, is.etag)) {
            return Outcome::Failed;
        }
    } else if let Some(date) = date(headers, &header::IF_UNMODIFIED_SINCE)
        && is.last_modified > date
    {
        return Outcome::Failed;
    }
    if headers.contains_key(header::IF_NONE_MATCH) {
        if any_tag(headers, &header::IF_NONE_MATCH, |tag| weak_eq(tag, is.etag)) {
            return Outcome::NotModified;
        }
    } else if let Some(date) = date(headers, &header::IF_MODIFIED_SINCE)
        && is.last_modified <= date
    {
        return Outcome::NotModified;
    }
    Outcome::Proceed
}

/// Whether a `Range` header is to be followed as far as `If-Range` (§13.1.5) is concerned. `now`
/// is the value of the answer's `Date`.
pub fn range_allowed(headers: &HeaderMap, is: Validators<'_>, now: SystemTime) -> bool {
    let mut values = headers.get_all(header::IF_RANGE).iter();
    let Some(value) = values.next() else {
        return true;
    };
    if values.next().is_some() {
        return false;
    }
    let value = value.as_bytes().trim_ascii();
    if value.starts_with(b"\"") || value.starts_with(b"W/") {
        return strong_eq(value, is.etag);
    }
    // A date is a strong validator only when it is surely older than the answer (§8.8.2.2).
    let strong = is.last_modified + Duration::from_secs(1) <= now;
    strong && parse_date(value) == Some(is.last_modified)
}

/// Cuts a time to the whole seconds that a header can say.
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The date in a header that must occur once; anything else counts as absent.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { parse_date(value.as_bytes()) }
}

fn parse_date(value: &[u8]) -> Option<SystemTime> {
    httpdate::parse_http_date(std::str::from_utf8(value.trim_ascii()).ok()?).ok()
}

/// Whether some entity tag in the lists under `name` satisfies `matches`; `*` satisfies all.
/// A list is read up to the first thing that is no tag.
fn any_tag(headers: &HeaderMap, name: &HeaderName, matches: impl Fn(&[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes();
        value.trim_ascii() == b"*" || Tags(value).any(&matches)
    })
}

/// The entity tags of a list (§8.8.3), with `W/` and quotes.
struct Tags<'a>(&'a [u8]);

impl<'a> Iterator for Tags<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while let [b' ' | b'\t' | b',', rest @ ..] = self.0 {
            self.0 = rest;
        }
        let prefix = if self.0.starts_with(b"W/\"") {
            3
        } else if self.0.starts_with(b"\"") {
            1
        } else {
            return None;
        };
        let length = self.0.get(prefix..)?.iter().position(|byte| *byte == b'"')?;
        let (tag, rest) = self.0.split_at(prefix + length + 1);
        self.0 = rest;
        Some(tag)
    }
}

fn strong_eq(tag: &[u8], etag: &str) -> bool {
    tag == etag.as_bytes()
}

/// §8.8.3.2. Ours are never weak, so only the other side's prefix is ignored.
fn weak_eq(tag: &[u8], etag: &str) -> bool {
    tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const OLD: &str = "Sun, 01 Nov 2026 00:00:00 GMT";
    const AT: &str = "Mon, 02 Nov 2026 00:00:00 GMT";
    const NEW: &str = "Tue, 03 Nov 2026 00:00:00 GMT";

    fn is() -> Validators<'static> {
        Validators { etag: "\"x\"", last_modified: httpdate::parse_http_date(AT).unwrap() }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn preconditions_of_rfc_9110() {
        use Outcome::{Failed, NotModified, Proceed};
        let cases: &[(&[(&str, &str)], Outcome)] = &[
            (&[], Proceed),
            (&[("if-match", "\"x\"")], Proceed),
            (&[("if-match", "*")], Proceed),
            (&[("if-match", "\"y\", \"x\"")], Proceed),
            (&[("if-match", "\"y\""), ("if-match", "\"x\"")], Proceed),
            (&[("if-match", "W/\"x\"")], Failed),
            (&[("if-match", "\"y\"")], Failed),
            (&[("if-match", "")], Failed),
            (&[("if-match", "x")], Failed),
            (&[("if-none-match", "\"x\"")], NotModified),
            (&[("if-none-match", "W/\"x\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"a,b\" ,W/\"c\",\"x\"")], NotModified),
            (&[("if-none-match", "\"y\"")], Proceed),
            (&[("if-none-match", "x")], Proceed),
            (&[("if-none-match", "\"x")], Proceed),
            (&[("if-modified-since", AT)], NotModified),
            (&[("if-modified-since", NEW)], NotModified),
            (&[("if-modified-since", OLD)], Proceed),
            (&[("if-modified-since", "nonsense")], Proceed),
            (&[("if-modified-since", AT), ("if-modified-since", AT)], Proceed),
            (&[("if-unmodified-since", AT)], Proceed),
            (&[("if-unmodified-since", NEW)], Proceed),
            (&[("if-unmodified-since", OLD)], Failed),
            (&[("if-unmodified-since", "0")], Proceed),
            // If-None-Match overrides If-Modified-Since, If-Match overrides If-Unmodified-Since.
            (&[("if-none-match", "\"y\""), ("if-modified-since", NEW)], Proceed),
            (&[("if-match", "\"x\""), ("if-unmodified-since", OLD)], Proceed),
            // If-Match is evaluated before If-None-Match.
            (&[("if-match", "\"y\""), ("if-none-match", "\"x\"")], Failed),
            (&[("if-match", "\"x\""), ("if-none-match", "\"x\"")], NotModified),
            (&[("if-unmodified-since", NEW), ("if-modified-since", NEW)], NotModified),
        ];
        for (pairs, expected) in cases {
            assert_eq!(evaluate(&headers(pairs), is()), *expected, "{pairs:?}");
        }
    }

    #[test]
    fn if_range_needs_a_strong_match() {
        let now = httpdate::parse_http_date(NEW).unwrap();
        let cases = [
            (None, true),
            (Some("\"x\""), true),
            (Some("W/\"x\""), false),
            (Some("\"y\""), false),
            (Some(AT), true),
            (Some(OLD), false),
            (Some(NEW), false),
            (Some("junk"), false),
        ];
        for (value, expected) in cases {
            let map = value.map_or_else(HeaderMap::new, |value| headers(&[("if-range", value)]));
            assert_eq!(range_allowed(&map, is(), now), expected, "{value:?}");
        }
        let fresh = is().last_modified;
        assert!(!range_allowed(&headers(&[("if-range", AT)]), is(), fresh));
    }

    proptest! {
        #[test]
        fn no_header_value_panics(
            name in 0usize..5, value in proptest::collection::vec(32u8..=255, 0..80)
        ) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let names = [
                header::IF_MATCH, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE,
                header::IF_UNMODIFIED_SINCE, header::IF_RANGE,
            ];
            let mut map = HeaderMap::new();
            map.insert(names[name].clone(), value);
            evaluate(&map, is());
            range_allowed(&map, is(), is().last_modified);
        }

        #[test]
        fn near_tags_never_panic(value in "[W/\", *x\t]{0,24}") {
            let mut map = HeaderMap::new();
            map.insert(header::IF_NONE_MATCH, HeaderValue::from_str(&value).unwrap());
            evaluate(&map, is());
        }
    }
}
