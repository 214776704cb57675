//! Plain HTTP: sends every visitor to HTTPS on the same host.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::pin::pin;

use atoll_net::shutdown::Shutdown;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::{HEAD_BYTES_MAX, HEAD_TIMEOUT, LINGER, tcp};
use crate::index::host;

/// Redirects until shutdown. `https_port` is the port visitors are sent to. Returns how many
/// connections had to be cut off.
///
/// # Errors
/// When the runtime does not take the socket.
pub async fn serve(
    listener: StdTcpListener,
    https_port: u16,
    shutdown: Shutdown,
) -> io::Result<usize> {
    let stop = shutdown.clone();
    tcp::accept(listener, "http", shutdown, move |stream| {
        connection(stream, https_port, stop.clone())
    })
    .await
}

async fn connection(stream: TcpStream, https_port: u16, shutdown: Shutdown) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
        let answer = answer(request.uri(), host, https_port);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.wait() => {
            connection.as_mut().graceful_shutdown();
            // A redirect takes no time; what takes longer is the rest of a head.
            match tokio::time::timeout(LINGER, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a plain connection ended early");
    }
}

fn answer(uri: &Uri, host: Option<&str>, https_port: u16) -> Response<Full<Bytes>> {
    let location = location(uri, host, https_port);
    let (status, text) = match &location {
        Some(_) => (StatusCode::PERMANENT_REDIRECT, "This site is served over HTTPS.\n"),
        None => (StatusCode::BAD_REQUEST, "The request names no host to redirect to.\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::SERVER, HeaderValue::from_static("atoll"));
    if let Some(location) = location {
        headers.insert(header::LOCATION, location);
    }
    metrics::counter!("atoll_edge_requests_total", "protocol" => "plain",
        "status" => status.as_str().to_owned())
    .increment(1);
    response
}

fn location(uri: &Uri, host: Option<&str>, https_port: u16) -> Option<HeaderValue> {
    let named = uri.authority().map(http::uri::Authority::as_str).or(host)?;
    let host = host::normalized(named)?;
    let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    if !path.starts_with('/') {
        return None;
    }
    HeaderValue::from_bytes(format!("https://{host}{port}{path}").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn visitors_stay_on_their_host() {
        let to = |uri: &str, host: Option<&str>, port| {
            location(&uri.parse().unwrap(), host, port).map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(
            to("/a%20b?c=d", Some("Blog.localhost:8080"), 8443).unwrap(),
            "https://blog.localhost:8443/a%20b?c=d"
        );
        assert_eq!(to("/", Some("blog.example"), 443).unwrap(), "https://blog.example/");
        assert_eq!(to("http://x.test/y", Some("z"), 443).unwrap(), "https://x.test/y");
        assert_eq!(to("/", None, 443), None);
        assert_eq!(to("*", Some("blog.example"), 443), None);
        assert_eq!(to("/", Some("a b"), 443), None);
        assert_eq!(to("/", Some("evil@good"), 443), None);
    }
}
