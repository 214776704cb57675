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

    /// Whether it keeps the bounds.
    pub fn is_sound(&self) -> bool {
        let places = self.0.iter().filter(|part| matches!(part, Part::Captured { .. }));
        places.count() <= limits::RULE_PLACES_MAX
    }

    /// The URL: captured bytes are percent-encoded, so that they can end neither the header nor the
    /// part of the URL they are in, and never make a host of a path.
    pub fn url(&self, captured: &[Vec<u8>]) -> String {
        let mut url = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => url.push_str(text),
                Part::Captured { place, splat } => {
                    let bytes = captured.get(usize::from(*place)).map_or(&b""[..], Vec::as_slice);
                    let in_path = !url.contains(['?', '#']);
                    encode(bytes, *splat && in_path, &mut url);
                }
            }
        }
        // `//host` would leave the site.
        if url.starts_with("//") {
            return format!("/{}", url.trim_start_matches('/'));
        }
        url
    }

    /// The value of a header: captured bytes are encoded as in a URL.
    pub fn value(&self, captured: &[Vec<u8>]) -> String {
        let mut value = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => value.push_str(text),
                Part::Captured { place, .. } => {
                    let bytes = captured.get(usize::from(*place)).map_or(&b""[..], Vec::as_slice);
                    encode(bytes, true, &mut value);
                }
            }
        }
        value
    }
}

/// Writes bytes as a part of a URL (RFC 3986 §2): everything but unreserved characters and what a
/// path segment may hold is escaped, a slash too unless it is kept.
pub fn encode(bytes: &[u8], keep_slashes: bool, to: &mut String) {
    for byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~!$'()*,:@;".contains(byte);
        if plain || (keep_slashes && *byte == b'/') {
            to.push(char::from(*byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
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
