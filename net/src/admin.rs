//! The port for operators and probes: liveness, readiness and metrics over plain HTTP/1.1.
//!
//! Every role starts one with [`serve`], on loopback unless it is told otherwise. It changes
//! nothing and takes no request bodies; the edge's admin API is not here.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::shutdown::Shutdown;
use crate::{NetError, telemetry};

const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 16 << 10;
/// No probe or scrape keeps a connection for longer.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long to wait after `accept` failed (usually: no file descriptor is free).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether a node can do its work, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether the node should be sent work.
    pub ready: bool,
    /// What it waits for, in words; empty when it is ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Ready for work.
    pub fn ready() -> Readiness {
        Readiness { ready: true, reasons: Vec::new() }
    }

    /// Not ready, for this reason.
    pub fn not(reason: impl Into<String>) -> Readiness {
        Readiness { ready: false, reasons: vec![reason.into()] }
    }
}

/// Where the admin port listens: an address to bind, or a socket that is bound already.
#[derive(Debug)]
pub enum AdminListener {
    /// Bind this address; port 0 lets the system choose.
    Address(SocketAddr),
    /// Use this socket.
    Bound(StdTcpListener),
}

impl From<SocketAddr> for AdminListener {
    fn from(addr: SocketAddr) -> AdminListener {
        AdminListener::Address(addr)
    }
}

impl From<StdTcpListener> for AdminListener {
    fn from(listener: StdTcpListener) -> AdminListener {
        AdminListener::Bound(listener)
    }
}

/// Starts the admin port in the background, until `shutdown`: `/livez` (200 while the process
/// runs), `/readyz` (200 or 503 with the reasons as lines, or as JSON with `?verbose`),
/// `/metrics`. Returns the address it listens on. Must be called inside a Tokio runtime.
///
/// # Errors
/// When the address cannot be bound.
pub fn serve(
    listener: impl Into<AdminListener>,
    readiness: watch::Receiver<Readiness>,
    shutdown: Shutdown,
) -> Result<SocketAddr, NetError> {
    let listener = match listener.into() {
        AdminListener::Address(addr) => {
            StdTcpListener::bind(addr).map_err(|source| NetError::Bind { addr, source })?
        }
        AdminListener::Bound(listener) => listener,
    };
    let unbound = SocketAddr::from(([0, 0, 0, 0], 0));
    let addr = listener.local_addr().map_err(|source| NetError::Bind { addr: unbound, source })?;
    let bind = |source| NetError::Bind { addr, source };
    listener.set_nonblocking(true).map_err(bind)?;
    let listener = TcpListener::from_std(listener).map_err(bind)?;
    crate::task::spawn("admin", accept(listener, readiness, shutdown));
    Ok(addr)
}

async fn accept(listener: TcpListener, readiness: watch::Receiver<Readiness>, shutdown: Shutdown) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stopping = pin!(shutdown.wait());
    loop {
        let accepted = tokio::select! {
            () = &mut stopping => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // Past the cap the connection is closed at once.
                if let Ok(slot) = slots.clone().try_acquire_owned() {
                    let connection = connection(stream, readiness.clone(), shutdown.clone());
                    crate::task::spawn("admin-connection", async move {
                        connection.await;
                        drop(slot);
                    });
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the admin port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, readiness: watch::Receiver<Readiness>, shutdown: Shutdown) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &readiness);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), answer)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(HEADER_TIMEOUT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
        () = tokio::time::sleep(CONNECTION_LIFETIME) => return,
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "admin connection");
    }
}

fn respond(
    request: &Request<Incoming>,
    readiness: &watch::Receiver<Readiness>,
) -> Response<Full<Bytes>> {
    if !request.body().is_end_stream() {
        let mut response =
            plain(StatusCode::PAYLOAD_TOO_LARGE, "this port takes no request bodies\n");
        let close = header::HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        return response;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = header::HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/livez" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let verbose = request.uri().query().is_some_and(|query| {
                query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
            });
            ready(&readiness.borrow(), verbose)
        }
        "/metrics" => typed(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            telemetry::render_metrics(),
        ),
        _ => plain(StatusCode::NOT_FOUND, "try /livez, /readyz or /metrics\n"),
    }
}

fn ready(readiness: &Readiness, verbose: bool) -> Response<Full<Bytes>> {
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if verbose {
        let body = serde_json::to_string(readiness).expect("a flag and strings always encode");
        return typed(status, "application/json", body);
    }
    if readiness.ready {
        return plain(status, "ok\n");
    }
    let mut lines = String::from("not ready\n");
    for reason in &readiness.reasons {
        lines.push_str(reason);
        lines.push('\n');
    }
    plain(status, lines)
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}
