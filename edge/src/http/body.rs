//! Response bodies: nothing, bytes at hand, or chunks in order with a few fetched ahead.
//!
//! [`super::respond`] opens one, the protocols send it. The first bytes are at hand before the
//! head of the response is sent, so that a missing chunk is a 503 and not a broken answer; a chunk
//! that fails later ends the stream with an error, on which the protocols abort. A body is never
//! short and never wrong.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use atoll_proto::content::{Extent, ExtentList};
use atoll_proto::{ChunkId, Content};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesOrdered, Stream, StreamExt as _};

use super::range::ByteRange;
use crate::fetch::{Chunks, FillError, Source, Worth};

/// Chunks of one answer that are fetched or held at the same time.
const AHEAD: usize = 3;
/// Bytes of a hole that are sent at once.
const ZEROS_BYTES: u32 = 64 << 10;
static ZEROS: [u8; ZEROS_BYTES as usize] = [0; ZEROS_BYTES as usize];

/// The body of a response.
pub enum Body {
    /// None.
    Empty,
    /// All of it.
    Whole(Bytes),
    /// So many bytes, as they come.
    Stream(BodyStream),
}

/// A body that is fetched while it is sent.
pub struct BodyStream {
    left: u64,
    parts: BoxStream<'static, Result<Bytes, FillError>>,
}

/// A body under way cannot be completed; the connection or stream must be aborted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk cannot be had.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The chunks have other lengths than the manifest says.
    #[error("the content does not have the length it should")]
    Length,
}

/// Bytes that go into a body: what stands before, and a range of the content.
#[derive(Debug, Clone)]
pub struct Part {
    /// Framing before the range.
    pub prefix: Bytes,
    /// The range.
    pub range: ByteRange,
}

/// A body whose first bytes are at hand.
pub struct Opened {
    /// The body.
    pub body: Body,
    /// Where its first chunk came from, and whether another request had asked for it; `None` when
    /// no chunk was needed.
    pub first: Option<(Source, bool)>,
}

/// Opens a body of `len` bytes: the parts in order, then `suffix`.
///
/// # Errors
/// When the first chunk cannot be had.
pub async fn open(
    chunks: Arc<Chunks>,
    content: Content,
    parts: Vec<Part>,
    suffix: Bytes,
    len: u64,
) -> Result<Opened, BodyError> {
    if len == 0 {
        return Ok(Opened { body: Body::Empty, first: None });
    }
    if let (Content::Extents(extents), [part], true) = (&content, &parts[..], suffix.is_empty())
        && let [Extent { id: Some(id), len: length }] = extents.as_slice()
        && part.prefix.is_empty()
    {
        return one_chunk(&chunks, *id, *length, part.range).await;
    }
    let mut reader = Reader {
        pieces: Pieces {
            chunks: chunks.clone(),
            content,
            parts: parts.into(),
            suffix,
            range: None,
        },
        chunks,
        ahead: FuturesOrdered::new(),
        ended: false,
        first: None,
    };
    let Some(head) = reader.next().await? else {
        return Err(BodyError::Length);
    };
    let first = reader.first;
    if head.len() as u64 == len {
        return Ok(Opened { body: Body::Whole(head), first });
    }
    let rest = stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    let parts = stream::once(std::future::ready(Ok(head))).chain(rest).boxed();
    Ok(Opened { body: Body::Stream(BodyStream { left: len, parts }), first })
}

/// The body of most answers: a range of a file of one chunk.
async fn one_chunk(
    chunks: &Chunks,
    id: ChunkId,
    length: u32,
    range: ByteRange,
) -> Result<Opened, BodyError> {
    let got = chunks.get(id, Worth::Use).await?;
    let within = usize::try_from(range.from).ok().zip(usize::try_from(range.to).ok());
    match within {
        Some((from, to)) if got.bytes.len() == length as usize && to <= got.bytes.len() => {
            let body = Body::Whole(got.bytes.slice(from..to));
            Ok(Opened { body, first: Some((got.source, got.collapsed)) })
        }
        _ => Err(BodyError::Length),
    }
}

impl Body {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Whole(bytes) => bytes.len() as u64,
            Body::Stream(stream) => stream.left,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len())
    }
}

impl BodyStream {
    /// Bytes still to come.
    pub fn left(&self) -> u64 {
        self.left
    }
}

/// Ends with an error rather than short, and never gives more than it announced.
impl Stream for BodyStream {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let item = match std::task::ready!(self.parts.poll_next_unpin(cx)) {
            Some(Ok(bytes)) => match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => {
                    self.left = left;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                None => BodyError::Length,
            },
            Some(Err(error)) => BodyError::Fill(error),
            None => BodyError::Length,
        };
        self.left = 0;
        metrics::counter!("atoll_edge_bodies_aborted_total").increment(1);
        Poll::Ready(Some(Err(item)))
    }
}

type Loading = BoxFuture<'static, Result<(Bytes, Option<(Source, bool)>), FillError>>;

/// Loads pieces in order, a few ahead.
struct Reader {
    pieces: Pieces,
    chunks: Arc<Chunks>,
    ahead: FuturesOrdered<Loading>,
    ended: bool,
    first: Option<(Source, bool)>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        while !self.ended && self.ahead.len() < AHEAD {
            match self.pieces.next().await? {
                Some(piece) => self.ahead.push_back(load(self.chunks.clone(), piece)),
                None => self.ended = true,
            }
        }
        let Some(loaded) = self.ahead.next().await else {
            return Ok(None);
        };
        let (bytes, from) = loaded?;
        if self.first.is_none() {
            self.first = from;
        }
        Ok(Some(bytes))
    }
}

fn load(chunks: Arc<Chunks>, piece: Piece) -> Loading {
    Box::pin(async move {
        match piece {
            Piece::Literal(bytes) => Ok((bytes, None)),
            Piece::Zeros(len) => Ok((Bytes::from_static(&ZEROS[..len as usize]), None)),
            Piece::Chunk { id, len, from, to } => {
                let got = chunks.get(id, Worth::Use).await?;
                if got.bytes.len() != len as usize {
                    return Err(FillError::upstream(id, "its length is not what the list says"));
                }
                let bytes = got.bytes.slice(from as usize..to as usize);
                Ok((bytes, Some((got.source, got.collapsed))))
            }
        }
    })
}

/// A part of a body that is loaded at once.
enum Piece {
    Literal(Bytes),
    /// At most [`ZEROS_BYTES`].
    Zeros(u32),
    Chunk {
        id: ChunkId,
        len: u32,
        from: u32,
        to: u32,
    },
}

/// Cuts the parts of a body into pieces. List chunks are read as they are reached, so that the
/// memory of an answer does not grow with the file.
struct Pieces {
    chunks: Arc<Chunks>,
    content: Content,
    parts: VecDeque<Part>,
    suffix: Bytes,
    range: Option<(ByteRange, Cursor)>,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Piece>, FillError> {
        loop {
            if let Some((range, cursor)) = &mut self.range {
                if range.is_empty() {
                    self.range = None;
                    continue;
                }
                let piece = cursor.piece(&self.chunks, range).await?;
                return Ok(Some(piece));
            }
            let Some(part) = self.parts.pop_front() else {
                let suffix = std::mem::take(&mut self.suffix);
                return Ok((!suffix.is_empty()).then_some(Piece::Literal(suffix)));
            };
            self.range = Some((part.range, Cursor::new(&self.content)));
            if !part.prefix.is_empty() {
                return Ok(Some(Piece::Literal(part.prefix)));
            }
        }
    }
}

/// A place in the extents of a content.
struct Cursor {
    extents: VecDeque<Extent>,
    lists: VecDeque<ChunkId>,
    /// Where the first of `extents` starts in the file.
    offset: u64,
}

impl Cursor {
    fn new(content: &Content) -> Cursor {
        let (extents, lists) = match content {
            Content::Empty => (VecDeque::new(), VecDeque::new()),
            Content::Extents(extents) => (extents.iter().copied().collect(), VecDeque::new()),
            Content::Lists { lists, .. } => {
                (VecDeque::new(), lists.iter().map(|(_, id)| *id).collect())
            }
        };
        Cursor { extents, lists, offset: 0 }
    }

    /// The next piece of `range`, which is shortened by it.
    async fn piece(&mut self, chunks: &Chunks, range: &mut ByteRange) -> Result<Piece, FillError> {
        loop {
            let Some(extent) = self.extents.front().copied() else {
                self.read_list(chunks).await?;
                continue;
            };
            let end = self.offset + u64::from(extent.len);
            if end <= range.from {
                self.extents.pop_front();
                self.offset = end;
                continue;
            }
            let within = |at: u64| u32::try_from(at - self.offset).unwrap_or(extent.len);
            let (from, to) = (within(range.from), within(range.to.min(end)));
            return Ok(match extent.id {
                Some(id) => {
                    range.from += u64::from(to - from);
                    Piece::Chunk { id, len: extent.len, from, to }
                }
                None => {
                    let len = (to - from).min(ZEROS_BYTES);
                    range.from += u64::from(len);
                    Piece::Zeros(len)
                }
            });
        }
    }

    async fn read_list(&mut self, chunks: &Chunks) -> Result<(), FillError> {
        let Some(list) = self.lists.pop_front() else {
            let none = ChunkId::default();
            return Err(FillError::upstream(none, "the content is shorter than its size says"));
        };
        let got = chunks.get(list, Worth::Use).await?;
        let extents = ExtentList::decode(&got.bytes)
            .map_err(|error| FillError::upstream(list, error.to_string()))?;
        self.extents = extents.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::tests::FakeUpstream;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    /// A content of `bytes` in chunks of `size`, every fourth of which is a hole of zeros.
    fn content(upstream: &FakeUpstream, all: &mut [u8], size: usize, lists: bool) -> Content {
        let mut extents = Vec::new();
        for (index, part) in all.chunks_mut(size).enumerate() {
            let id = if index % 4 == 3 {
                part.fill(0);
                None
            } else {
                Some(upstream.add(part.to_vec()))
            };
            extents.push(Extent { id, len: u32::try_from(part.len()).unwrap() });
        }
        if !lists || extents.is_empty() {
            return Content::from_extents(extents);
        }
        let lists = extents.chunks(3).map(|some| {
            let list = ExtentList::V1(some.to_vec()).encode();
            (u32::try_from(list.len()).unwrap(), upstream.add(list))
        });
        Content::Lists { size: all.len() as u64, lists: lists.collect() }
    }

    async fn read(body: Body) -> Result<Vec<u8>, BodyError> {
        match body {
            Body::Empty => Ok(Vec::new()),
            Body::Whole(bytes) => Ok(bytes.to_vec()),
            Body::Stream(mut stream) => {
                let mut all = Vec::new();
                while let Some(part) = stream.next().await {
                    all.extend_from_slice(&part?);
                }
                Ok(all)
            }
        }
    }

    fn part(from: usize, to: usize) -> Part {
        let range = ByteRange { from: from as u64, to: to as u64 };
        Part { prefix: Bytes::new(), range }
    }

    fn chunks(upstream: &Arc<FakeUpstream>) -> Arc<Chunks> {
        Arc::new(Chunks::new(Arc::new(Cache::in_memory(1 << 20)), upstream.clone()))
    }

    #[tokio::test]
    async fn a_range_reads_only_the_chunks_it_needs() {
        let upstream = Arc::new(FakeUpstream::default());
        let mut all = bytes(1000);
        let content = content(&upstream, &mut all, 100, false);
        let opened = open(chunks(&upstream), content, vec![part(150, 160)], Bytes::new(), 10);
        let opened = opened.await.unwrap();
        assert_eq!(opened.first, Some((Source::Origin, false)));
        assert_eq!(read(opened.body).await.unwrap(), all[150..160]);
        assert_eq!(upstream.fetches(), 1);
    }

    #[tokio::test]
    async fn a_failure_on_the_way_is_an_error_and_never_an_end() {
        let upstream = Arc::new(FakeUpstream::default());
        let mut all = bytes(1000);
        let content = content(&upstream, &mut all, 100, false);
        let opened = open(chunks(&upstream), content, vec![part(0, 1000)], Bytes::new(), 1000);
        let opened = opened.await.unwrap();
        upstream.down.store(true, Ordering::SeqCst);
        assert!(matches!(read(opened.body).await, Err(BodyError::Fill(_))));
    }

    #[tokio::test]
    async fn contents_shorter_or_longer_than_announced_are_errors() {
        let upstream = Arc::new(FakeUpstream::default());
        let id = upstream.add(bytes(50));
        let lying = Content::Extents(vec![Extent { id: Some(id), len: 60 }]);
        let opened = open(chunks(&upstream), lying, vec![part(0, 60)], Bytes::new(), 60).await;
        assert!(opened.is_err());
        let list = ExtentList::V1(vec![Extent { id: Some(id), len: 50 }]).encode();
        let lists = vec![(1, upstream.add(list))];
        let lying = Content::Lists { size: 80, lists };
        let opened = open(chunks(&upstream), lying, vec![part(0, 80)], Bytes::new(), 80).await;
        let outcome = match opened {
            Ok(opened) => read(opened.body).await.is_err(),
            Err(_) => true,
        };
        assert!(outcome);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_range_of_every_content_has_its_bytes(
            len in 1usize..5000, size in 1usize..700, lists: bool,
            cuts in proptest::collection::vec((0usize..5000, 0usize..5000), 1..4),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let upstream = Arc::new(FakeUpstream::default());
            let mut all = bytes(len);
            let content = content(&upstream, &mut all, size, lists);
            let mut expected = Vec::new();
            let mut parts = Vec::new();
            for (a, b) in cuts {
                let (a, b) = (a % (len + 1), b % (len + 1));
                let (from, to) = (a.min(b), a.max(b));
                expected.extend_from_slice(b"<>");
                expected.extend_from_slice(&all[from..to]);
                parts.push(Part { prefix: Bytes::from_static(b"<>"), ..part(from, to) });
            }
            expected.extend_from_slice(b"end");
            let suffix = Bytes::from_static(b"end");
            let got = runtime.block_on(async {
                let len = expected.len() as u64;
                let opened = open(chunks(&upstream), content, parts, suffix, len).await.unwrap();
                assert_eq!(opened.body.len(), len);
                read(opened.body).await.unwrap()
            });
            prop_assert_eq!(got, expected);
        }
    }
}
