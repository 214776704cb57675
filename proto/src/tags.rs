//! Cache tags: names that a site's header rules give to files, for `invalidate --tag`.
//!
//! Read by edges out of the headers a file has by the rules of its site. `Cache-Tag` separates
//! tags by commas, as Cloudflare and Akamai do; `Surrogate-Key` by spaces, as Fastly does, and by
//! commas, which join several lines of one header (RFC 9110 section 5.3). Tags are compared without
//! regard to case. The headers themselves are for edges only.

use crate::limits;

/// Headers that carry tags; no visitor gets them.
pub const TAG_HEADERS: [&str; 2] = ["cache-tag", "surrogate-key"];

/// The tags in these headers, at most `limits::TAGS_MAX`; what is no tag is left out.
pub fn tags_of<N, V>(headers: &[(N, V)]) -> impl Iterator<Item = &str>
where
    N: AsRef<str>,
    V: AsRef<str>,
{
    headers
        .iter()
        .flat_map(|(name, value)| {
            let name = name.as_ref();
            let commas = name.eq_ignore_ascii_case(TAG_HEADERS[0]);
            let carries = commas || name.eq_ignore_ascii_case(TAG_HEADERS[1]);
            let value = if carries { value.as_ref() } else { "" };
            value.split(move |c: char| c == ',' || (!commas && c.is_ascii_whitespace()))
        })
        .map(str::trim)
        .filter(|tag| check_tag(tag).is_ok())
        .take(limits::TAGS_MAX)
}

/// As tags are compared: two that are the same have the same here.
pub fn folded(tag: &str) -> String {
    tag.to_ascii_lowercase()
}

/// Checks a tag.
///
/// # Errors
/// With the rule it breaks.
pub fn check_tag(tag: &str) -> Result<(), String> {
    let bad = |rule: &str| Err(format!("cache tag {tag:?} {rule}"));
    if tag.is_empty() || tag.len() > limits::TAG_BYTES_MAX {
        return bad("must have 1 to 1024 characters");
    }
    if tag.trim() != tag || !tag.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b',') {
        return bad("may have printable ASCII characters only, no commas, and no space around it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags(headers: &[(&str, &str)]) -> Vec<String> {
        tags_of(headers).map(str::to_owned).collect()
    }

    #[test]
    fn both_headers_name_tags_in_their_own_way() {
        let headers =
            [("CACHE-TAG", " a, B c ,,d"), ("X-Other", "e"), ("surrogate-key", "f  g,h i, j")];
        assert_eq!(tags(&headers), ["a", "B c", "d", "f", "g", "h", "i", "j"]);
        assert!(folded("News") == folded("nEWS") && folded("News") != folded("New"));
        assert!(tags(&[]).is_empty());
    }

    #[test]
    fn what_is_too_long_or_too_many_is_left_out() {
        let long = "x".repeat(limits::TAG_BYTES_MAX + 1);
        assert_eq!(tags(&[("cache-tag", &format!("a,{long},b,\u{fc}"))]), ["a", "b"]);
        let many = "t,".repeat(limits::TAGS_MAX * 2);
        assert_eq!(tags(&[("cache-tag", &many)]).len(), limits::TAGS_MAX);
        for tag in ["", " a", "a,b", "a\n", &long] {
            assert!(check_tag(tag).is_err(), "{tag:?}");
        }
    }

    proptest! {
        #[test]
        fn every_tag_found_is_one(value in ".{0,200}") {
            let headers = [("Cache-Tag", value.clone()), ("Surrogate-Key", value)];
            for tag in tags_of(&headers) {
                prop_assert!(check_tag(tag).is_ok());
            }
        }
    }
}
