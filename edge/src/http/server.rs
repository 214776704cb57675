//! The listeners together: bound first, so that their ports are known, and served after that.
//!
//! [`crate::run`] calls [`bind`] and [`Bound::serve`].

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use atoll_net::shutdown::Shutdown;
use atoll_net::task::Tasks;

use super::reset::ResetSecret;
use super::respond::Responder;
use super::tls::{Certificate, TlsError};
use super::{DRAIN, Protocol, h3, plain, socket, tcp};

/// Sockets that do not answer yet.
#[derive(Debug)]
pub struct Bound {
    http: TcpListener,
    https: TcpListener,
    quic: UdpSocket,
    secret: ResetSecret,
    /// Where plain HTTP is.
    pub http_addr: SocketAddr,
    /// Where HTTPS is, TCP and UDP.
    pub https_addr: SocketAddr,
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr} ({what}): {source}")]
pub struct BindError {
    /// What for.
    pub what: &'static str,
    /// Where.
    pub addr: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// Opens all sockets; port 0 takes one from the system.
///
/// # Errors
/// When an address cannot be had.
pub fn bind(http: SocketAddr, https: SocketAddr) -> Result<Bound, BindError> {
    let failed = |what, addr| move |source| BindError { what, addr, source };
    let plain = socket::tcp(http).map_err(failed("http", http))?;
    let http_addr = plain.local_addr().map_err(failed("http", http))?;
    let (tcp, quic, https_addr) = socket::tcp_and_udp(https).map_err(failed("https", https))?;
    let secret = ResetSecret::passing();
    Ok(Bound { http: plain, https: tcp, quic, secret, http_addr, https_addr })
}

impl Bound {
    /// With a secret that outlives the process, so that the next one can end the HTTP/3 connections
    /// of this one.
    pub fn with_secret(self, secret: ResetSecret) -> Bound {
        Bound { secret, ..self }
    }

    /// Answers until shutdown, and drains. Returns how many connections had to be cut off, because
    /// an answer took too long.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve(
        self,
        responder: Arc<Responder>,
        certificate: Arc<Certificate>,
        shutdown: Shutdown,
    ) -> Result<usize, TlsError> {
        let (over_tcp, over_quic) = (certificate.tcp()?, certificate.quic()?);
        let port = self.https_addr.port();
        let (tasks, cut) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
        let http = plain::serve(self.http, port, shutdown.clone());
        tasks.spawn("listen-http", ended("http", http, cut.clone()));
        let https = tcp::serve(self.https, over_tcp, responder.clone(), shutdown.clone());
        tasks.spawn("listen-https", ended("https", https, cut.clone()));
        let (secret, stop, lost) = (self.secret, shutdown.clone(), cut.clone());
        let quic = self.quic;
        tasks.spawn("listen-h3", async move {
            let serving = h3::serve(quic, over_quic, &secret, responder, stop);
            ended("h3", serving, lost).await;
        });
        let watch = atoll_net::task::spawn("certificate", certificate.watch());
        let _watch = atoll_net::task::AbortOnDrop::new(watch);
        shutdown.wait().await;
        tasks.drain(DRAIN * 2).await;
        Ok(cut.load(Ordering::Relaxed))
    }
}

async fn ended(
    name: &'static str,
    listener: impl Future<Output = io::Result<usize>>,
    cut: Arc<AtomicUsize>,
) {
    match listener.await {
        Ok(some) => drop(cut.fetch_add(some, Ordering::Relaxed)),
        Err(error) => tracing::error!(listener = name, %error, "a listener stopped"),
    }
}

/// Counts bytes of a body that were handed to the connection.
pub(super) fn count_bytes(protocol: Protocol, bytes: usize) {
    metrics::counter!("atoll_edge_sent_bytes_total", "protocol" => protocol.as_str())
        .increment(bytes as u64);
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
