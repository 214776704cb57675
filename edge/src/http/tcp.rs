//! HTTP/1.1 and HTTP/2 over TLS, by hyper.
//!
//! [`super::server`] starts [`serve`]. A connection is a task; its bounds are here, the answers
//! come from [`super::respond`].

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use atoll_net::shutdown::Shutdown;
use atoll_net::task::Tasks;
use bytes::Bytes;
use futures_util::stream::StreamExt as _;
use http::{HeaderValue, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::body::{Body, BodyError};
use super::h3::{BODY_BYTES_MAX, BODY_TIMEOUT};
use super::respond::Responder;
use super::{
    CONNECTIONS_MAX, DRAIN, HEAD_BYTES_MAX, HEAD_TIMEOUT, IDLE_TIMEOUT, LINGER, Protocol, Request,
    STREAMS_MAX,
};

/// How often a connection's clocks are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long to wait after `accept` failed (usually: no file descriptor is free).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every connection needs.
struct Shared {
    responder: Arc<Responder>,
    acceptor: TlsAcceptor,
    alt_svc: HeaderValue,
    shutdown: Shutdown,
}

/// Answers until shutdown, then lets what is under way finish for a while. Returns how many
/// connections had to be cut off.
///
/// # Errors
/// When the runtime does not take the socket.
pub async fn serve(
    listener: StdTcpListener,
    tls: Arc<ServerConfig>,
    responder: Arc<Responder>,
    shutdown: Shutdown,
) -> io::Result<usize> {
    let port = listener.local_addr()?.port();
    let alt_svc =
        HeaderValue::from_str(&format!("h3=\":{port}\"; ma=86400")).map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared { responder, acceptor, alt_svc, shutdown: shutdown.clone() });
    accept(listener, "https", shutdown, move |stream| connection(stream, shared.clone())).await
}

/// Gives every connection a task, within the bound, until shutdown. Returns how many had to be
/// cut off then.
pub(super) async fn accept<F, W>(
    listener: StdTcpListener,
    name: &'static str,
    shutdown: Shutdown,
    serve: F,
) -> io::Result<usize>
where
    F: Fn(TcpStream) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = Tasks::new();
    let mut stopping = pin!(shutdown.wait());
    loop {
        let accepted = tokio::select! {
            () = &mut stopping => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    metrics::counter!("atoll_edge_connections_refused_total", "listener" => name)
                        .increment(1);
                    continue;
                };
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection was gone before it was served");
                }
                let work = serve(stream);
                connections.spawn(name, async move {
                    work.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, listener = name, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    Ok(connections.drain(DRAIN).await)
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let activity = Arc::new(Activity::new(Instant::now()));
    let stream = Watched { stream, activity: activity.clone() };
    // Who has not asked for anything yet does not hold up the end.
    let accepted = tokio::select! {
        accepted = timeout(HEAD_TIMEOUT, shared.acceptor.accept(stream)) => accepted,
        () = shared.shutdown.wait() => return,
    };
    let Ok(Ok(stream)) = accepted else {
        metrics::counter!("atoll_edge_handshakes_failed_total", "protocol" => "tls").increment(1);
        return;
    };
    activity.expect_head(Instant::now());
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let protocol = if h2 { Protocol::H2 } else { Protocol::H1 };
    let service = {
        let (shared, activity) = (shared.clone(), activity.clone());
        service_fn(move |request: http::Request<Incoming>| {
            answer(request, protocol, shared.clone(), activity.clone())
        })
    };
    let io = TokioIo::new(stream);
    let outcome = if h2 {
        activity.forget_head();
        let mut builder = http2::Builder::new(Spawner);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .max_send_buf_size(1 << 20)
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(256 << 10);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http2::Connection::graceful_shutdown, &shared, &activity, false)
            .await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX);
        let connection = pin!(builder.serve_connection(io, service));
        until_done(connection, http1::Connection::graceful_shutdown, &shared, &activity, true).await
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, protocol = protocol.as_str(), "a connection ended early");
    }
}

/// Drives a connection until it ends, is idle for too long, or shutdown is over.
async fn until_done<C>(
    mut connection: Pin<&mut C>,
    graceful: impl Fn(Pin<&mut C>),
    shared: &Shared,
    activity: &Activity,
    heads: bool,
) -> Result<(), hyper::Error>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let mut stopping = pin!(shared.shutdown.wait());
    let mut stopped = false;
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            ended = &mut connection => return ended,
            () = &mut stopping, if !stopped => {
                stopped = true;
                graceful(connection.as_mut());
            }
            _ = look.tick() => {
                if activity.is_stuck(heads, Instant::now()) {
                    metrics::counter!("atoll_edge_connections_timed_out_total").increment(1);
                    return Ok(());
                }
                // Part of a head, or of a handshake, of which no more comes.
                if stopped && activity.is_idle(Instant::now()) {
                    return Ok(());
                }
            }
        }
    }
}

async fn answer(
    request: http::Request<Incoming>,
    protocol: Protocol,
    shared: Arc<Shared>,
    activity: Arc<Activity>,
) -> Result<http::Response<HyperBody>, Infallible> {
    let open = Open::new(activity);
    let (parts, body) = request.into_parts();
    read_out(body).await;
    let request =
        Request { method: parts.method, uri: parts.uri, headers: parts.headers, protocol };
    let response = shared.responder.respond(&request).await;
    let body = HyperBody { body: response.body, protocol, _open: open };
    let mut answer = http::Response::new(body);
    *answer.status_mut() = response.status;
    *answer.headers_mut() = response.headers;
    answer.headers_mut().insert(header::ALT_SVC, shared.alt_svc.clone());
    Ok(answer)
}

/// Takes in what a request carries, within bounds, and forgets it. No method here uses a body, but
/// one that is dropped unread resets the stream before the answer (RFC 9113 §8.1) arrives.
async fn read_out(mut body: Incoming) {
    let read = async {
        let mut left = BODY_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let len = frame.data_ref().map_or(0, Bytes::len);
            if len > left {
                break;
            }
            left -= len;
        }
    };
    if timeout(BODY_TIMEOUT, read).await.is_err() {
        tracing::debug!("a request body was too slow to be read out");
    }
}

/// Runs the streams of an HTTP/2 connection as counted tasks.
#[derive(Clone)]
struct Spawner;

impl<W> hyper::rt::Executor<W> for Spawner
where
    W: Future + Send + 'static,
    W::Output: Send + 'static,
{
    fn execute(&self, work: W) {
        drop(atoll_net::task::spawn("h2-stream", work));
    }
}

/// A body as hyper takes it.
struct HyperBody {
    body: Body,
    protocol: Protocol,
    _open: Open,
}

impl HttpBody for HyperBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            Body::Empty => Poll::Ready(None),
            Body::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.body = Body::Empty;
                Poll::Ready(Some(Ok(bytes)))
            }
            Body::Stream(stream) => stream.poll_next_unpin(cx),
        };
        if let Poll::Ready(Some(Ok(bytes))) = &polled {
            super::server::count_bytes(this.protocol, bytes.len());
        }
        polled.map(|item| item.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.len())
    }
}

/// What a connection does, for its timeouts. Times are milliseconds since it began.
#[derive(Debug)]
struct Activity {
    began: Instant,
    progress_ms: AtomicU64,
    /// Since when a head is expected or arriving, plus one; 0 when none is.
    head_ms: AtomicU64,
    open: AtomicUsize,
}

impl Activity {
    fn new(began: Instant) -> Activity {
        Activity {
            began,
            progress_ms: AtomicU64::new(0),
            head_ms: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn progressed(&self, now: Instant) {
        self.progress_ms.store(self.millis(now), Ordering::Relaxed);
    }

    fn read(&self, now: Instant) {
        self.progressed(now);
        if self.open.load(Ordering::Relaxed) == 0 && self.head_ms.load(Ordering::Relaxed) == 0 {
            self.expect_head(now);
        }
    }

    fn expect_head(&self, now: Instant) {
        self.head_ms.store(self.millis(now) + 1, Ordering::Relaxed);
    }

    fn forget_head(&self) {
        self.head_ms.store(0, Ordering::Relaxed);
    }

    fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.forget_head();
    }

    fn closed(&self, now: Instant) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.progressed(now);
    }

    /// Whether nothing is being answered and nothing moved for [`LINGER`].
    fn is_idle(&self, now: Instant) -> bool {
        let since = self.millis(now).saturating_sub(self.progress_ms.load(Ordering::Relaxed));
        self.open.load(Ordering::Relaxed) == 0 && u128::from(since) > LINGER.as_millis()
    }

    /// Whether nothing moved for too long, or (with `heads`) a head takes too long to arrive.
    fn is_stuck(&self, heads: bool, now: Instant) -> bool {
        let now = self.millis(now);
        let longer_than =
            |since: u64, bound: Duration| u128::from(now.saturating_sub(since)) > bound.as_millis();
        let head = self.head_ms.load(Ordering::Relaxed);
        (heads && head > 0 && longer_than(head - 1, HEAD_TIMEOUT))
            || longer_than(self.progress_ms.load(Ordering::Relaxed), IDLE_TIMEOUT)
    }
}

/// A request that is being answered.
struct Open(Arc<Activity>);

impl Open {
    fn new(activity: Arc<Activity>) -> Open {
        activity.opened();
        Open(activity)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed(Instant::now());
    }
}

/// A stream that notes when it moves.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            self.activity.read(Instant::now());
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if polled.is_ready() {
            self.activity.progressed(Instant::now());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        if polled.is_ready() {
            self.activity.progressed(Instant::now());
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_heads_and_idle_connections_are_told_apart() {
        let mut now = Instant::now();
        let activity = Activity::new(now);
        activity.expect_head(now);
        now += HEAD_TIMEOUT - Duration::from_secs(1);
        activity.read(now);
        assert!(!activity.is_stuck(true, now));
        now += Duration::from_secs(2);
        assert!(activity.is_stuck(true, now) && !activity.is_stuck(false, now));
        activity.opened();
        now += IDLE_TIMEOUT / 2;
        activity.progressed(now);
        assert!(!activity.is_stuck(true, now), "an answer may take long while it moves");
        assert!(!activity.is_idle(now + LINGER * 2), "it is being answered");
        activity.closed(now);
        assert!(!activity.is_idle(now + LINGER), "its last bytes may still be on their way");
        assert!(activity.is_idle(now + LINGER + Duration::from_millis(1)));
        now += IDLE_TIMEOUT - Duration::from_secs(1);
        assert!(!activity.is_stuck(true, now), "a connection may wait for its next request");
        now += Duration::from_secs(2);
        assert!(activity.is_stuck(true, now) && activity.is_stuck(false, now));
    }
}
