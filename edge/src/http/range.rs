//! The `Range` header (RFC 9110 §14) and the parts of a `multipart/byteranges` answer.
//!
//! Pure: called by [`super::respond`] for GET only, after the preconditions. What cannot or need
//! not be followed is ignored, as §14.2 allows, and the whole file is served.

use bytes::Bytes;
use http::{HeaderMap, header};

/// More ranges than this in one request are ignored: they cost more than the whole file.
const RANGES_MAX: usize = 16;

/// Some bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub from: u64,
    /// Behind the last byte.
    pub to: u64,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Everything: 200.
    Whole,
    /// These ranges, at least one, each within the file: 206.
    Ranges(Vec<ByteRange>),
    /// Only bytes that are not there: 416.
    Unsatisfiable,
}

/// Reads the `Range` header of a request for a file of `size` bytes.
pub fn asked(headers: &HeaderMap, size: u64) -> Asked {
    let mut values = headers.get_all(header::RANGE).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.as_bytes(), size).unwrap_or(Asked::Whole),
        _ => Asked::Whole,
    }
}

/// `None` when the header is not one that must be followed.
fn parse(value: &[u8], size: u64) -> Option<Asked> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut ranges = Vec::new();
    let mut specs = 0;
    for spec in set.split(',') {
        let spec = spec.trim();
        if spec.is_empty() {
            continue;
        }
        specs += 1;
        if specs > RANGES_MAX {
            return None;
        }
        ranges.extend(one(spec, size)?);
    }
    if specs == 0 || (size == 0 && suffix_only(set)) {
        return None;
    }
    if ranges.is_empty() {
        return Some(Asked::Unsatisfiable);
    }
    Some(Asked::Ranges(coalesced(ranges)))
}

/// Whether every range counts from the end: of an empty file those ask for the whole of it, which
/// `Content-Range` cannot express.
fn suffix_only(set: &str) -> bool {
    let mut specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
    specs.all(|spec| spec.starts_with('-') && number(&spec[1..]).is_some_and(|n| n > 0))
}

/// One range; `Some(None)` when it lies behind the end, `None` when it is malformed.
fn one(spec: &str, size: u64) -> Option<Option<ByteRange>> {
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim_end(), last.trim_start());
    if first.is_empty() {
        let length = number(last)?.min(size);
        let range = ByteRange { from: size - length, to: size };
        return Some((length > 0).then_some(range));
    }
    let from = number(first)?;
    let to = if last.is_empty() { size } else { number(last)?.checked_add(1)? };
    if to <= from && !last.is_empty() {
        return None;
    }
    Some((from < size).then_some(ByteRange { from, to: to.min(size) }))
}

/// Digits only; more than a u64 holds is behind the end of every file.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX - 1))
}

/// Ranges that overlap or touch become one, so that no byte is sent twice (§14.2); others keep
/// the order they were asked in.
fn coalesced(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    let mut sorted = ranges.clone();
    sorted.sort_by_key(|range| range.from);
    let mut merged: Vec<ByteRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.from <= last.to => last.to = last.to.max(range.to),
            _ => merged.push(range),
        }
    }
    if merged.len() == ranges.len() { ranges } else { merged }
}

impl ByteRange {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        self.to - self.from
    }

    /// Whether there are none; ranges of a request never are.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }

    /// The value of `Content-Range` for these bytes of a file of `size` bytes.
    pub fn content_range(&self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.from, self.to - 1)
    }
}

/// The frame of a `multipart/byteranges` body (§14.6).
#[derive(Debug, Clone)]
pub struct Multipart {
    /// The value of `Content-Type`.
    pub content_type: String,
    /// What stands before each range.
    pub prefixes: Vec<Bytes>,
    /// What stands behind the last.
    pub suffix: Bytes,
    /// Length of the whole body in bytes.
    pub len: u64,
}

impl Multipart {
    /// Frames `ranges` of a file. `seed` names the content, so that the boundary is different for
    /// every content and equal on every edge; it cannot be part of the content it is derived from.
    pub fn new(ranges: &[ByteRange], size: u64, content_type: &str, seed: &[u8]) -> Multipart {
        let mut hasher = blake3::Hasher::new_derive_key("atoll 2026 multipart boundary v1");
        hasher.update(seed);
        let boundary = atoll_proto::ids::hex(&hasher.finalize().as_bytes()[..16]);
        let prefixes: Vec<Bytes> = ranges
            .iter()
            .map(|range| {
                Bytes::from(format!(
                    "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {}\r\n\r\n",
                    range.content_range(size)
                ))
            })
            .collect();
        let suffix = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let framing = prefixes.iter().map(|prefix| prefix.len() as u64).sum::<u64>();
        let len = framing + ranges.iter().map(ByteRange::len).sum::<u64>() + suffix.len() as u64;
        let content_type = format!("multipart/byteranges; boundary={boundary}");
        Multipart { content_type, prefixes, suffix, len }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn ask(value: &str, size: u64) -> Asked {
        let mut map = HeaderMap::new();
        map.insert(header::RANGE, HeaderValue::from_str(value).unwrap());
        asked(&map, size)
    }

    fn ranges(list: &[(u64, u64)]) -> Asked {
        Asked::Ranges(list.iter().map(|(from, to)| ByteRange { from: *from, to: *to }).collect())
    }

    #[test]
    fn ranges_of_rfc_9110() {
        let cases = [
            ("bytes=0-0", ranges(&[(0, 1)])),
            ("bytes=0-499", ranges(&[(0, 500)])),
            ("bytes=500-999", ranges(&[(500, 1000)])),
            ("BYTES=9500-", ranges(&[(9500, 10_000)])),
            ("bytes=-500", ranges(&[(9500, 10_000)])),
            ("bytes=-20000", ranges(&[(0, 10_000)])),
            ("bytes=0-0,-1", ranges(&[(0, 1), (9999, 10_000)])),
            ("bytes= 0-0, 2-3 ,,9-9", ranges(&[(0, 1), (2, 4), (9, 10)])),
            ("bytes=9-9,0-0", ranges(&[(9, 10), (0, 1)])),
            ("bytes=500-600,601-999", ranges(&[(500, 1000)])),
            ("bytes=500-700,601-999,0-0", ranges(&[(0, 1), (500, 1000)])),
            ("bytes=0-99999", ranges(&[(0, 10_000)])),
            ("bytes=0-99999999999999999999999", ranges(&[(0, 10_000)])),
            ("bytes=0-5,20000-", ranges(&[(0, 6)])),
            ("bytes=10000-", Asked::Unsatisfiable),
            ("bytes=99999999999999999999-", Asked::Unsatisfiable),
            ("bytes=-0", Asked::Unsatisfiable),
            ("bytes=5-4", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=1", Asked::Whole),
            ("bytes=--1", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("items=0-1", Asked::Whole),
            ("0-1", Asked::Whole),
        ];
        for (value, expected) in cases {
            assert_eq!(ask(value, 10_000), expected, "{value}");
        }
    }

    #[test]
    fn an_empty_file_and_many_ranges() {
        assert_eq!(ask("bytes=0-", 0), Asked::Unsatisfiable);
        assert_eq!(ask("bytes=0-0", 0), Asked::Unsatisfiable);
        assert_eq!(ask("bytes=-5", 0), Asked::Whole);
        let many: Vec<String> = (0..17).map(|n| format!("{}-{}", n * 10, n * 10)).collect();
        assert_eq!(ask(&format!("bytes={}", many.join(",")), 10_000), Asked::Whole);
        let mut twice = HeaderMap::new();
        twice.append(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        twice.append(header::RANGE, HeaderValue::from_static("bytes=1-1"));
        assert_eq!(asked(&twice, 10), Asked::Whole);
    }

    #[test]
    fn the_frame_has_the_length_it_says() {
        let list = [ByteRange { from: 0, to: 1 }, ByteRange { from: 5, to: 9 }];
        let framed = Multipart::new(&list, 10, "text/plain", b"seed");
        let mut body = Vec::new();
        for (prefix, range) in framed.prefixes.iter().zip(&list) {
            body.extend_from_slice(prefix);
            body.resize(body.len() + usize::try_from(range.len()).unwrap(), b'x');
        }
        body.extend_from_slice(&framed.suffix);
        assert_eq!(body.len() as u64, framed.len);
        assert!(String::from_utf8(body).unwrap().contains("Content-Range: bytes 5-8/10"));
    }

    proptest! {
        #[test]
        fn no_value_panics_and_ranges_lie_within(
            value in "(bytes=)?[0-9,\\- ]{0,40}", size in 0u64..5000
        ) {
            if let Asked::Ranges(list) = ask(&value, size) {
                prop_assert!(!list.is_empty());
                let mut sorted = list.clone();
                sorted.sort_by_key(|range| range.from);
                prop_assert!(sorted.iter().all(|range| range.from < range.to && range.to <= size));
                prop_assert!(sorted.windows(2).all(|pair| pair[0].to <= pair[1].from));
            }
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(32u8..=255, 0..60), size: u64) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let mut map = HeaderMap::new();
            map.insert(header::RANGE, value);
            asked(&map, size);
        }
    }
}
