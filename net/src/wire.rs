//! Frames on a QUIC stream: writing them, and reading them piece by piece within limits.
//!
//! The layout is `atoll_proto::frame`; the server loop and the call use this from their two ends.
//! Deadlines are theirs: nothing here watches a clock.

use atoll_proto::frame::{self, Kind, PREFIX_BYTES, Prefix, RequestHead};
use atoll_proto::{Code, WireError, limits};
use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadError, ReadExactError, RecvStream};
use serde::Serialize;
use tokio::io::AsyncReadExt;

/// Why no whole frame came.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// The stream or its connection broke.
    Read(ReadError),
    /// The stream ended early, went on too long, or starts with something else than a frame.
    Bad(WireError),
}

impl FrameError {
    fn truncated() -> FrameError {
        FrameError::Bad(WireError::invalid("the stream ended within the frame"))
    }
}

/// A frame ready to be sent: the first piece is prefix and head.
pub(crate) type Pieces = Vec<Bytes>;

/// The frame of a request. `request` is the role's message, encoded.
pub(crate) fn request(
    head: &RequestHead,
    request: &[u8],
    body: &[Bytes],
) -> Result<Pieces, WireError> {
    let head = atoll_proto::encode(head);
    frame(frame::VERSION, Kind::Request, &[&head, request], body)
}

/// The frame of an answer, in the version the request came in.
pub(crate) fn answer<R: Serialize>(
    version: u8,
    head: &R,
    body: &[Bytes],
) -> Result<Pieces, WireError> {
    let head = encode(head)?;
    frame(version, Kind::Answer, &[&head], body).map_err(|error| {
        WireError::internal(format!("the answer does not fit a frame: {}", error.message))
    })
}

/// The frame of an error.
pub(crate) fn error(version: u8, error: &WireError) -> Pieces {
    let mut error = error.clone();
    if error.message.len() > MESSAGE_BYTES_MAX {
        let is_boundary = |end: &usize| error.message.is_char_boundary(*end);
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(is_boundary).unwrap_or(0);
        error.message.truncate(end);
    }
    frame(version, Kind::Error, &[&atoll_proto::encode(&error)], &[])
        .expect("a short error fits a frame")
}

const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Encodes a role's message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    postcard::to_stdvec(message)
        .map_err(|error| WireError::internal(format!("the message cannot be encoded: {error}")))
}

fn frame(version: u8, kind: Kind, head: &[&[u8]], body: &[Bytes]) -> Result<Pieces, WireError> {
    let head_len: usize = head.iter().map(|part| part.len()).sum();
    let body_len: usize = body.iter().map(Bytes::len).sum();
    if head_len > limits::HEAD_BYTES_MAX || body_len > limits::BODY_BYTES_MAX {
        return Err(WireError::new(
            Code::Limit,
            format!("message too large: head {head_len} bytes, body {body_len} bytes"),
        ));
    }
    let prefix = Prefix {
        version,
        kind,
        head_len: u32::try_from(head_len).expect("checked against HEAD_BYTES_MAX"),
        body_len: body_len as u64,
    };
    let mut first = Vec::with_capacity(PREFIX_BYTES + head_len);
    first.extend_from_slice(&prefix.encode());
    for part in head {
        first.extend_from_slice(part);
    }
    let mut pieces = Vec::with_capacity(1 + body.len());
    pieces.push(Bytes::from(first));
    pieces.extend(body.iter().filter(|piece| !piece.is_empty()).cloned());
    Ok(pieces)
}

pub(crate) fn len(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64).sum()
}

/// Reads and checks the fixed start of a frame.
pub(crate) async fn read_prefix(recv: &mut RecvStream) -> Result<Prefix, FrameError> {
    let mut bytes = [0; PREFIX_BYTES];
    match recv.read_exact(&mut bytes).await {
        Ok(()) => Prefix::decode(&bytes).map_err(FrameError::Bad),
        Err(ReadExactError::FinishedEarly(_)) => Err(FrameError::truncated()),
        Err(ReadExactError::ReadError(error)) => Err(FrameError::Read(error)),
    }
}

/// Reads exactly `len` bytes; the caller has checked `len` against a limit. Memory is only
/// touched as bytes arrive.
pub(crate) async fn read_bytes(recv: &mut RecvStream, len: usize) -> Result<Bytes, FrameError> {
    let mut bytes = BytesMut::with_capacity(len);
    while bytes.len() < len {
        let left = len - bytes.len();
        match recv.read_buf(&mut (&mut bytes).limit(left)).await {
            Ok(0) => return Err(FrameError::truncated()),
            Ok(_) => {}
            Err(error) => return Err(FrameError::Read(read_error(error))),
        }
    }
    Ok(bytes.freeze())
}

/// Checks that the stream ends here, so that half a message is never taken for a whole one.
pub(crate) async fn read_end(recv: &mut RecvStream) -> Result<(), FrameError> {
    match recv.read(&mut [0; 1]).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => {
            Err(FrameError::Bad(WireError::invalid("bytes follow the frame on its stream")))
        }
        Err(error) => Err(FrameError::Read(error)),
    }
}

fn read_error(error: std::io::Error) -> ReadError {
    error.downcast::<ReadError>().unwrap_or(ReadError::ClosedStream)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_frame_announces_what_follows() {
        let head = RequestHead { deadline_ms: 5, token: None, trace: None };
        let body = [Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"de")];
        let pieces = request(&head, b"xyz", &body).unwrap();
        assert_eq!(pieces.len(), 3);
        let prefix = Prefix::decode(pieces[0][..PREFIX_BYTES].try_into().unwrap()).unwrap();
        assert_eq!((prefix.kind, prefix.body_len), (Kind::Request, 5));
        assert_eq!(PREFIX_BYTES as u64 + u64::from(prefix.head_len) + 5, len(&pieces));
    }

    #[test]
    fn oversize_is_refused_before_it_is_sent() {
        let head = RequestHead { deadline_ms: 5, token: None, trace: None };
        let huge = Bytes::from(vec![0; limits::BODY_BYTES_MAX + 1]);
        assert_eq!(request(&head, b"", &[huge]).unwrap_err().code, Code::Limit);
        let head_too_long = vec![0; limits::HEAD_BYTES_MAX];
        assert_eq!(request(&head, &head_too_long, &[]).unwrap_err().code, Code::Limit);
        let long = WireError::internal("ä".repeat(limits::HEAD_BYTES_MAX));
        assert!(len(&error(1, &long)) < 100_000);
    }
}
