//! Paths with several splats, as the `_headers` of Netlify's dialect may have.
//!
//! Called by [`super::pattern`]. What stands between two splats is looked for where it comes first:
//! that leaves the most for what follows, so nothing is tried twice, and the time is that of looking
//! for each part once.

use super::pattern::Segment;

/// A part of a pattern, compared with the bytes of a path that begins with a slash.
enum Token<'p> {
    /// These.
    Bytes(&'p [u8]),
    /// The rest of a segment, at least one byte.
    Segment,
    /// The end of a segment.
    Boundary,
}

/// What may stand beside several splats: nothing that could be matched in two ways.
pub(super) fn may_be_beside_splats(segment: &Segment) -> bool {
    match segment {
        Segment::Literal(_) | Segment::Splat { .. } => true,
        Segment::Name { prefix, suffix } => prefix.is_empty() && suffix.is_empty(),
        Segment::Names { .. } => false,
    }
}

/// Whether a path is one of these. A splat that is a whole segment stands for any number of them,
/// also none; another one for any text.
pub(super) fn fits(segments: &[Segment], asked: &[&[u8]]) -> bool {
    let mut pieces: Vec<Vec<Token<'_>>> = vec![Vec::new()];
    for segment in segments {
        let piece = pieces.last_mut().expect("there is always a piece");
        match segment {
            Segment::Literal(bytes) => piece.extend([Token::Bytes(b"/"), Token::Bytes(bytes)]),
            Segment::Name { .. } => piece.extend([Token::Bytes(b"/"), Token::Segment]),
            // Never beside splats: see `may_be_beside_splats`.
            Segment::Names { .. } => return false,
            Segment::Splat { prefix, suffix } if prefix.is_empty() && suffix.is_empty() => {
                piece.push(Token::Boundary);
                pieces.push(Vec::new());
            }
            Segment::Splat { prefix, suffix } => {
                piece.extend([Token::Bytes(b"/"), Token::Bytes(prefix)]);
                pieces.push(vec![Token::Bytes(suffix)]);
            }
        }
    }
    let mut text = Vec::with_capacity(asked.iter().map(|segment| segment.len() + 1).sum());
    for segment in asked {
        text.push(b'/');
        text.extend_from_slice(segment);
    }
    let (first, rest) = pieces.split_first().expect("there is always a piece");
    let Some(mut at) = end_of(first, &text, 0) else { return false };
    let Some((last, middle)) = rest.split_last() else { return at == text.len() };
    for piece in middle {
        let found = (at..=text.len()).find_map(|from| end_of(piece, &text, from));
        let Some(end) = found else { return false };
        at = end;
    }
    begin_of(last, &text).is_some_and(|from| from >= at)
}

/// Where the last part begins, if the text ends with it: that can be in one way only.
fn begin_of(piece: &[Token<'_>], text: &[u8]) -> Option<usize> {
    let mut left = text;
    for token in piece.iter().rev() {
        left = match token {
            Token::Bytes(bytes) => left.strip_suffix(*bytes)?,
            // What is before it is always a slash.
            Token::Segment => {
                let begin = left.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                (begin < left.len()).then(|| &left[..begin])?
            }
            // Stands before a splat, so never in the last part.
            Token::Boundary => return None,
        };
    }
    Some(left.len())
}

/// Where a part ends that begins at `from`, if it is there.
fn end_of(piece: &[Token<'_>], text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    for token in piece {
        let rest = text.get(at..)?;
        match token {
            Token::Bytes(bytes) => at += rest.starts_with(bytes).then_some(bytes.len())?,
            Token::Segment => {
                let len = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
                at += (len > 0).then_some(len)?;
            }
            Token::Boundary if rest.is_empty() || rest[0] == b'/' => {}
            Token::Boundary => return None,
        }
        // The end of a literal segment is that of its token: the next begins with a slash.
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segments(text: &str) -> Vec<Segment> {
        let segment = |part: &str| match part.split_once('*') {
            Some((prefix, suffix)) => Segment::Splat {
                prefix: prefix.as_bytes().to_vec(),
                suffix: suffix.as_bytes().to_vec(),
            },
            None if part.starts_with(':') => {
                Segment::Name { prefix: Vec::new(), suffix: Vec::new() }
            }
            None => Segment::Literal(part.as_bytes().to_vec()),
        };
        text.split('/').skip(1).map(segment).collect()
    }

    fn fits(pattern: &str, path: &str) -> bool {
        let asked: Vec<&[u8]> = path.split('/').skip(1).map(str::as_bytes).collect();
        super::fits(&segments(pattern), &asked)
    }

    /// As it is defined: by trying everything.
    fn naive(segments: &[Segment], text: &[u8]) -> bool {
        let Some((segment, rest)) = segments.split_first() else { return text.is_empty() };
        let tails =
            |text: &[u8]| (0..=text.len()).map(|at| text[at..].to_vec()).collect::<Vec<_>>();
        match segment {
            Segment::Literal(bytes) => {
                let own = text.strip_prefix(b"/").and_then(|text| text.strip_prefix(&bytes[..]));
                own.is_some_and(|tail| naive(rest, tail))
            }
            Segment::Name { .. } => text.strip_prefix(b"/").is_some_and(|text| {
                let len = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
                len > 0 && naive(rest, &text[len..])
            }),
            Segment::Splat { prefix, suffix } if prefix.is_empty() && suffix.is_empty() => {
                naive(rest, text)
                    || (text.starts_with(b"/")
                        && tails(&text[1..]).iter().any(|tail| naive(rest, tail)))
            }
            Segment::Splat { prefix, suffix } => {
                let own = text.strip_prefix(b"/").and_then(|text| text.strip_prefix(&prefix[..]));
                own.is_some_and(|own| {
                    tails(own).iter().any(|tail| {
                        tail.strip_prefix(&suffix[..]).is_some_and(|tail| naive(rest, tail))
                    })
                })
            }
            Segment::Names { .. } => false,
        }
    }

    #[test]
    fn several_splats() {
        for (pattern, path, expected) in [
            ("/a/*/b/*", "/a/b", true),
            ("/a/*/b/*", "/a/x/y/b/z", true),
            ("/a/*/b/*", "/a/x/yb", false),
            ("/a/*/b/*", "/ax/b", false),
            ("/*/img/*.png", "/img/a.png", true),
            ("/*/img/*.png", "/x/img/y/a.png", true),
            ("/*/img/*.png", "/x/img/a.jpg", false),
            ("/*/:x/*.js", "/a.js", false),
            ("/*/:x/*.js", "/b/a.js", true),
            ("/a*/b*", "/a/b", true),
            ("/a*/b*", "/ax/y/bz/w", true),
            ("/a*/b*", "/b/a", false),
            ("/*/a*/:x", "/b/ac/d", true),
            ("/*/a*/:x", "/b/ac/", false),
            ("/*a/*b/:x", "/xa/yb/z", true),
        ] {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn looking_from_the_left_finds_what_trying_everything_finds(
            pattern in "(/(a|b|ab|:x|\\*|a\\*|\\*b|a\\*b)){1,5}",
            path in "(/[ab]{0,3}){0,6}",
        ) {
            let expected = naive(&segments(&pattern), path.as_bytes());
            prop_assert_eq!(fits(&pattern, &path), expected, "{} {}", pattern, path);
        }
    }
}
