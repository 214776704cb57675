//! TLS for internal links: version 1.3 only, both sides prove a certificate of the cluster.
//!
//! [`crate::endpoint`] uses this once per endpoint. The provider is always named (aws-lc-rs), so
//! that no process-wide default decides about cryptography.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::NetError;
use crate::identity::Identity;

/// What both sides say they speak (ALPN). The version of messages is in each frame.
pub(crate) const ALPN: &[u8] = b"atoll/1";

/// AES-128 first: every processor we run on has AES instructions, and it halves the cost of
/// ChaCha20 while asking no more than QUIC's own initial packets do.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn roots(identity: &Identity) -> Result<Arc<RootCertStore>, NetError> {
    let mut roots = RootCertStore::empty();
    for authority in identity.authorities()? {
        roots.add(authority).map_err(NetError::identity)?;
    }
    Ok(Arc::new(roots))
}

/// The side that accepts connections: asks for and insists on a client certificate.
pub(crate) fn server(identity: &Identity) -> Result<Arc<QuicServerConfig>, NetError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(identity)?, provider.clone())
        .build()
        .map_err(NetError::identity)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(NetError::identity)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain()?, identity.key()?)
        .map_err(NetError::identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections live long; resumption would only keep secrets around.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(NetError::identity)?))
}

/// The side that opens connections.
pub(crate) fn client(identity: &Identity) -> Result<Arc<QuicClientConfig>, NetError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(NetError::identity)?
        .with_root_certificates(roots(identity)?)
        .with_client_auth_cert(identity.chain()?, identity.key()?)
        .map_err(NetError::identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(NetError::identity)?))
}
