//! What a rule makes of what it captured: a target, or the value of a header.

use serde::{Deserialize, Serialize};

use crate::limits;

/// Text with places for what was captured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Template(pub Vec<Part>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// As it is.
    Text(String),
    /// What was captured at this place; the encoding keeps slashes in a path when `splat`.
    Captured {
        /// Counted from 0: the wildcards of the path in order, then those of the query.
        place: u8,
        /// Whether it may hold several segments.
        splat: bool,
    },
}

impl Template {
    /// Text alone.
    pub fn text(text: &str) -> Self {
        Self(vec![Part::Text(text.to_owned())])
    }

    /// Bytes of its text, without what is captured.
    pub fn text_bytes(&self) -> usize {
        let text = self.0.iter().map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Captured { .. } => 0,
        });
        text.sum()
    }

    /// Adds a part; texts that follow each other become one.
    pub fn push(&mut self, part: Part) {
        match (self.0.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (_, part) => self.0.push(part),
        }
    }

    /// Whether it keeps the bounds.
    pub fn is_sound(&self) -> bool {
        let places = self.0.iter().filter(|part| matches!(part, Part::Captured { .. }));
        places.count() <= limits::RULE_PLACES_MAX
            && self.0.len() <= PARTS_MAX
            && self.text_bytes() <= limits::LOCATION_BYTES_MAX
    }

    /// The URL: captured bytes are percent-encoded, so that they can end neither the header nor the
    /// part of the URL they are in, and never make a host of a path. `None` when it is longer than
    /// `limits::LOCATION_BYTES_MAX`, which is known before it is made.
    pub fn url(&self, captured: &Captures) -> Option<String> {
        if self.url_bytes(captured) > limits::LOCATION_BYTES_MAX {
            return None;
        }
        let url = self.made(captured);
        // `//host` would leave the site.
        if url.starts_with("//") {
            return Some(format!("/{}", url.trim_start_matches('/')));
        }
        Some(url)
    }

    /// Its parts, each with what may stand there.
    fn placed(&self) -> impl Iterator<Item = (&Part, Within)> {
        let mut in_path = true;
        self.0.iter().map(move |part| {
            let within = match part {
                Part::Text(text) => {
                    in_path &= !text.contains(['?', '#']);
                    Within::Query
                }
                Part::Captured { .. } if !in_path => Within::Query,
                Part::Captured { splat: true, .. } => Within::Path,
                Part::Captured { splat: false, .. } => Within::Segment,
            };
            (part, within)
        })
    }

    /// Bytes of what [`Template::made`] makes.
    pub(super) fn url_bytes(&self, captured: &Captures) -> usize {
        let bytes = self.placed().map(|(part, within)| match part {
            Part::Text(text) => text.len(),
            Part::Captured { place, .. } => captured.at(*place).map_or(0, |own| own.bytes(within)),
        });
        bytes.sum()
    }

    /// The URL as it is written.
    pub(super) fn made(&self, captured: &Captures) -> String {
        let mut url = String::new();
        for (part, within) in self.placed() {
            match part {
                Part::Text(text) => url.push_str(text),
                Part::Captured { place, .. } => {
                    if let Some(own) = captured.at(*place) {
                        encode(&own.plain, within, &mut url);
                    }
                }
            }
        }
        url
    }

    /// Bytes of what [`Template::add_value`] adds.
    pub fn value_bytes(&self, captured: &Captures) -> usize {
        let bytes = self.0.iter().map(|part| match part {
            Part::Text(text) => text.len(),
            Part::Captured { place, .. } => {
                captured.at(*place).map_or(0, |own| own.bytes(Within::Path))
            }
        });
        bytes.sum()
    }

    /// Adds the value of a header: captured bytes are encoded as in a URL.
    pub fn add_value(&self, captured: &Captures, to: &mut String) {
        for part in &self.0 {
            match part {
                Part::Text(text) => to.push_str(text),
                Part::Captured { place, .. } => {
                    if let Some(own) = captured.at(*place) {
                        encode(&own.plain, Within::Path, to);
                    }
                }
            }
        }
    }
}

/// Most parts of a template: every place with text around it, and a host.
const PARTS_MAX: usize = 2 * limits::RULE_PLACES_MAX + 2;

/// What a rule captured of a request, with what it takes when it is encoded: a template knows how
/// long its result is before it makes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captures(Vec<Captured>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Captured {
    plain: Vec<u8>,
    /// Bytes that are escaped wherever they stand.
    always: usize,
    /// Slashes.
    slashes: usize,
    /// Bytes that are escaped outside paths.
    pairs: usize,
}

impl Captures {
    /// What the wildcards of a path stand for, in order, then those of the query.
    pub fn new(captured: Vec<Vec<u8>>) -> Self {
        Self(captured.into_iter().map(Captured::new).collect())
    }

    fn at(&self, place: u8) -> Option<&Captured> {
        self.0.get(usize::from(place))
    }

    /// What was captured at a place.
    pub(super) fn plain(&self, place: u8) -> Option<&[u8]> {
        self.at(place).map(|own| own.plain.as_slice())
    }
}

impl Captured {
    fn new(plain: Vec<u8>) -> Self {
        let count = |fits: fn(u8) -> bool| plain.iter().filter(|byte| fits(**byte)).count();
        let always = count(|byte| !is_plain(byte, Within::Path));
        let slashes = count(|byte| byte == b'/');
        let pairs = count(|byte| PAIRS.contains(&byte));
        Self { plain, always, slashes, pairs }
    }

    /// Bytes it takes when it is encoded.
    fn bytes(&self, within: Within) -> usize {
        let escaped = match within {
            Within::Path => self.always,
            Within::Segment => self.always + self.slashes,
            Within::Query => self.always + self.slashes + self.pairs,
        };
        self.plain.len() + 2 * escaped
    }
}

/// A part of a URL, which decides what must be escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// Several segments of a path: slashes stay.
    Path,
    /// One segment of a path.
    Segment,
    /// What follows `?` or `#`.
    Query,
}

/// What may stand in a path, but tells parameters of a query apart.
const PAIRS: &[u8] = b"&=+";

fn is_plain(byte: u8, within: Within) -> bool {
    byte.is_ascii_alphanumeric()
        || b"-._~!$'()*,:@;".contains(&byte)
        || (within != Within::Query && PAIRS.contains(&byte))
        || (within == Within::Path && byte == b'/')
}

/// Writes bytes as a part of a URL (RFC 3986 §2): everything but unreserved characters and what that
/// part may hold is escaped.
pub fn encode(bytes: &[u8], within: Within, to: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if is_plain(*byte, within) {
            to.push(char::from(*byte));
        } else {
            to.push('%');
            to.push(char::from(HEX[usize::from(byte >> 4)]));
            to.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// Decodes percent escapes; `None` when one is malformed.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let (high, low) = (digit(*rest.next()?)?, digit(*rest.next()?)?);
        decoded.push(high * 16 + low);
    }
    Some(decoded)
}
