//! The admin port as a probe and a scraper see it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use atoll_net::admin::{self, Readiness};
use atoll_net::{shutdown, telemetry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

async fn send(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let read = stream.read_to_end(&mut reply);
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
    String::from_utf8(reply).unwrap()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    send(addr, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn probes_and_metrics() {
    telemetry::init("test", "off");
    metrics::counter!("atoll_admin_test_total").increment(1);
    let (sender, readiness) = watch::channel(Readiness::not("no master answers"));
    let (_trigger, shutdown) = shutdown::pair();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = admin::serve(listener, readiness, shutdown).unwrap();

    assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
    let waiting = get(addr, "/readyz").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("no master answers"));
    sender.send_replace(Readiness::ready());
    assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(addr, "/readyz?verbose").await.contains(r#"{"ready":true,"reasons":[]}"#));
    assert!(get(addr, "/metrics").await.contains("atoll_admin_test_total 1"));
    assert!(get(addr, "/other").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn bodies_other_methods_and_nonsense_are_refused() {
    let (_sender, readiness) = watch::channel(Readiness::ready());
    let (_trigger, shutdown) = shutdown::pair();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let addr = admin::serve(any, readiness, shutdown).unwrap();
    let body = "POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n";
    assert!(send(addr, body).await.starts_with("HTTP/1.1 413"));
    let delete = "DELETE /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(send(addr, delete).await.starts_with("HTTP/1.1 405"));
    assert!(send(addr, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(addr).await.unwrap();
    drop(stream.write_all(long.as_bytes()).await);
    assert!(get(addr, "/livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn shutdown_closes_the_port() {
    let (_sender, readiness) = watch::channel(Readiness::ready());
    let (trigger, shutdown) = shutdown::pair();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let addr = admin::serve(any, readiness, shutdown).unwrap();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    trigger.trigger();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), idle.read_to_end(&mut rest)).await;
    assert!(ended.is_ok());
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
