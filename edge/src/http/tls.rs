//! The certificate that visitors see, replaced while connections go on.
//!
//! One certificate for every name, unless an authority was given that makes one for the name a
//! visitor asks for ([`super::mint`]). [`Certificate::watch`] looks at the files now and then; a
//! pair that does not load leaves the old one in force.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::mint::Mint;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A certificate that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or parsed.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not fit, or TLS cannot be set up.
    #[error("cannot use the certificate: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A certificate on disk and what is in force of it.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    mint: Option<Mint>,
}

impl Certificate {
    /// Loads a PEM chain and its PEM key. Blocking.
    ///
    /// # Errors
    /// When they cannot be read or do not fit.
    pub fn load(chain: &Path, key: &Path) -> Result<Arc<Certificate>, TlsError> {
        let current = read(chain, key)?;
        Ok(Arc::new(Certificate {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current: ArcSwap::from_pointee(current),
            mint: None,
        }))
    }

    /// The same, with an authority that makes certificates for the names visitors ask for.
    /// Blocking.
    ///
    /// # Errors
    /// As [`Certificate::load`], or when the authority's directory cannot be used.
    pub fn load_with_authority(
        chain: &Path,
        key: &Path,
        authority: &Path,
    ) -> Result<Arc<Certificate>, TlsError> {
        let mint = Mint::load(authority).map_err(|error| TlsError::File {
            path: authority.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(Certificate {
            chain: chain.to_owned(),
            key: key.to_owned(),
            current: ArcSwap::from_pointee(read(chain, key)?),
            mint: Some(mint),
        }))
    }

    /// TLS for TCP: 1.2 and 1.3, HTTP/2 preferred.
    ///
    /// # Errors
    /// When the provider refuses.
    pub fn tcp(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        Ok(Arc::new(self.config(&versions, &[b"h2", b"http/1.1"])?))
    }

    /// TLS for QUIC: 1.3 only, without 0-RTT.
    ///
    /// # Errors
    /// When the provider refuses.
    pub fn quic(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        self.config(&[&rustls::version::TLS13], &[b"h3"])
    }

    /// TLS for DNS (RFC 7858): 1.2 and 1.3.
    ///
    /// # Errors
    /// When the provider refuses.
    pub fn dns(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        Ok(Arc::new(self.config(&versions, &[b"dot"])?))
    }

    fn config(
        self: &Arc<Self>,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
    ) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(config)
    }

    /// Puts new files in force when they change; never returns.
    pub async fn watch(self: Arc<Self>) {
        self.watch_every(LOOK_EVERY).await;
    }

    async fn watch_every(self: Arc<Self>, every: Duration) {
        let mut seen = self.changed_at().await;
        loop {
            tokio::time::sleep(every).await;
            let now = self.changed_at().await;
            if now == seen {
                continue;
            }
            let (chain, key) = (self.chain.clone(), self.key.clone());
            let work = move || read(&chain, &key);
            match atoll_net::task::spawn_blocking("certificate", work).await {
                Ok(Ok(loaded)) => {
                    tracing::info!(path = %self.chain.display(), "a new certificate is in force");
                    self.current.store(Arc::new(loaded));
                    seen = now;
                }
                // Perhaps only one of the two files is new yet: look again.
                Ok(Err(error)) => tracing::warn!(%error, "the old certificate stays in force"),
                Err(error) => tracing::error!(%error, "loading a certificate panicked"),
            }
        }
    }

    async fn changed_at(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let (chain, key) = (self.chain.clone(), self.key.clone());
        let modified = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        let work = move || (modified(&chain), modified(&key));
        atoll_net::task::spawn_blocking("certificate", work).await.unwrap_or_default()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let made = self.mint.as_ref().zip(hello.server_name());
        let made = made.and_then(|(mint, name)| mint.certificate(name));
        Some(made.unwrap_or_else(|| self.current.load_full()))
    }
}

fn read(chain_path: &Path, key_path: &Path) -> Result<CertifiedKey, TlsError> {
    let bad = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain_path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(chain_path, error.to_string()))?;
    if chain.is_empty() {
        return Err(bad(chain_path, "it holds no certificate".to_owned()));
    }
    let key =
        PrivateKeyDer::from_pem_file(key_path).map_err(|error| bad(key_path, error.to_string()))?;
    Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn write(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let (chain, key) = (dir.join("web.pem"), dir.join("web.key"));
        std::fs::write(&chain, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (chain, key)
    }

    #[test]
    fn a_pair_that_does_not_fit_is_refused_with_the_file_named() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = write(dir.path(), "one.localhost");
        let loaded = Certificate::load(&chain, &key).unwrap();
        assert_eq!(loaded.tcp().unwrap().alpn_protocols.len(), 2);
        assert_eq!(loaded.quic().unwrap().alpn_protocols, [b"h3".to_vec()]);
        let other = rcgen::generate_simple_self_signed(vec!["two".to_owned()]).unwrap();
        std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
        assert!(Certificate::load(&chain, &key).is_err());
        let missing = dir.path().join("missing.pem");
        let error = Certificate::load(&missing, &key).unwrap_err().to_string();
        assert!(error.contains("missing.pem"), "{error}");
        std::fs::write(&missing, "no certificate here").unwrap();
        assert!(Certificate::load(&missing, &key).is_err());
    }

    #[tokio::test]
    async fn new_files_are_put_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = write(dir.path(), "one.localhost");
        let loaded = Certificate::load(&chain, &key).unwrap();
        let before = loaded.current.load_full();
        let every = Duration::from_millis(5);
        let watch = atoll_net::task::spawn("test", loaded.clone().watch_every(every));
        write(dir.path(), "two.localhost");
        let mut later = SystemTime::now();
        while loaded.current.load().cert == before.cert {
            later += Duration::from_secs(1);
            for path in [&chain, &key] {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(later).unwrap();
            }
            tokio::time::sleep(every).await;
        }
        watch.abort();
    }
}
