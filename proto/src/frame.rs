//! The frame every message travels in, one request and one reply per QUIC stream.
//!
//! ```text
//! offset 0  magic     2 bytes  0xA7 0x01
//!        2  version   1 byte   protocol version of head and body
//!        3  kind      1 byte   0 request, 1 reply (answer), 2 reply (error)
//!        4  head_len  4 bytes  big-endian, at most limits::HEAD_BYTES_MAX
//!        8  body_len  8 bytes  big-endian, at most limits::BODY_BYTES_MAX
//!       16  head      postcard
//!           body      raw bytes (chunk payloads), so that they are never copied into the head
//! ```
//! A node speaks version N and N-1; today there is only [`VERSION`].

use serde::{Deserialize, Serialize};

use crate::{Code, WireError, limits};

/// The protocol version this build writes.
pub const VERSION: u8 = 1;
/// The oldest version this build still reads.
pub const VERSION_MIN: u8 = 1;
/// Length of the prefix in bytes.
pub const PREFIX_BYTES: usize = 16;
const MAGIC: [u8; 2] = [0xA7, 0x01];

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request: the head is a [`RequestHead`] followed by the role's request.
    Request,
    /// A reply: the head is the role's response.
    Answer,
    /// A reply: the head is a [`WireError`].
    Error,
}

/// The fixed start of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Protocol version of head and body.
    pub version: u8,
    /// What the frame holds.
    pub kind: Kind,
    /// Length of the head in bytes.
    pub head_len: u32,
    /// Length of the body in bytes.
    pub body_len: u64,
}

/// What every request carries beside the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHead {
    /// How long the caller still waits, in milliseconds.
    pub deadline_ms: u32,
    /// The caller's token, where a user is behind the request.
    pub token: Option<String>,
    /// W3C `traceparent`, when the caller traces.
    pub trace: Option<String>,
}

impl Prefix {
    /// The prefix as bytes.
    pub fn encode(&self) -> [u8; PREFIX_BYTES] {
        let mut out = [0; PREFIX_BYTES];
        out[..2].copy_from_slice(&MAGIC);
        out[2] = self.version;
        out[3] = match self.kind {
            Kind::Request => 0,
            Kind::Answer => 1,
            Kind::Error => 2,
        };
        out[4..8].copy_from_slice(&self.head_len.to_be_bytes());
        out[8..].copy_from_slice(&self.body_len.to_be_bytes());
        out
    }

    /// Reads a prefix and checks it against the limits.
    ///
    /// # Errors
    /// `Invalid` when it is no frame of ours, `UnsupportedVersion`, or `Limit` when it announces
    /// more than a frame may hold.
    pub fn decode(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, WireError> {
        if bytes[..2] != MAGIC {
            return Err(WireError::invalid("not an Atoll frame"));
        }
        let version = bytes[2];
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(WireError::new(
                Code::UnsupportedVersion,
                format!(
                    "protocol version {version} is not spoken here (this node speaks \
                     {VERSION_MIN} to {VERSION}): upgrade the older side"
                ),
            ));
        }
        let kind = match bytes[3] {
            0 => Kind::Request,
            1 => Kind::Answer,
            2 => Kind::Error,
            other => return Err(WireError::invalid(format!("unknown frame kind {other}"))),
        };
        let head_len = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let body_len = u64::from_be_bytes([
            bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
        ]);
        if head_len as usize > limits::HEAD_BYTES_MAX || body_len > limits::BODY_BYTES_MAX as u64 {
            return Err(WireError::new(
                Code::Limit,
                format!("frame too large: head {head_len} bytes, body {body_len} bytes"),
            ));
        }
        Ok(Self { version, kind, head_len, body_len })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decode_never_panics_and_round_trips(bytes: [u8; PREFIX_BYTES]) {
            if let Ok(prefix) = Prefix::decode(&bytes) {
                prop_assert_eq!(prefix.encode(), bytes);
            }
        }
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut bytes =
            Prefix { version: 1, kind: Kind::Request, head_len: 1, body_len: 2 }.encode();
        bytes[2] = 9;
        let error = Prefix::decode(&bytes).unwrap_err();
        assert_eq!(error.code, Code::UnsupportedVersion);
        assert!(error.message.contains('9'));
    }
}
