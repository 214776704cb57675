//! What a restarted edge must still know about HTTP/3 connections of before: enough to end them.
//!
//! A process that was killed says goodbye to nobody, and a visitor's connection over QUIC would
//! hang until its idle timeout. A stateless reset (RFC 9000 §10.3) ends it with the visitor's next
//! packet, if the new process can make the token that the old one promised for it. That token
//! follows from a secret in the data directory. [`super::h3`] uses it; [`crate::run`] reads it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

/// Its file in the data directory.
const FILE: &str = "h3-reset.key";
/// Its bytes.
const SECRET_BYTES: usize = 32;
const TOKEN_CONTEXT: &str = "atoll 2026 edge h3 stateless reset token";
/// The length of a connection's name. With it a packet of an earlier process is told from junk.
const ID_BYTES: usize = 8;

/// The secret that ties connections to this edge. `Debug` leaves it out.
#[derive(Clone)]
pub struct ResetSecret([u8; SECRET_BYTES]);

impl ResetSecret {
    /// A secret of this process only: connections of an earlier one are not ended.
    pub fn passing() -> ResetSecret {
        ResetSecret(rand::random())
    }

    /// The secret of this data directory, made at the first start. What cannot be read or stored
    /// is told in the log and is no reason not to serve. Blocking.
    pub fn of(data: &Path) -> ResetSecret {
        let path = data.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => match <[u8; SECRET_BYTES]>::try_from(bytes) {
                Ok(secret) => return ResetSecret(secret),
                Err(bytes) => tracing::warn!(path = %path.display(), bytes = bytes.len(),
                    "the secret of HTTP/3 connections is damaged; a new one is made"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, path = %path.display(),
                "the secret of HTTP/3 connections cannot be read"),
        }
        let made = ResetSecret::passing();
        if let Err(error) = made.store(&path) {
            tracing::warn!(%error, path = %path.display(),
                "the secret of HTTP/3 connections cannot be stored");
        }
        made
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&self.0)?;
        file.sync_all()?;
        fs::rename(&new, path)
    }

    /// How an endpoint names connections and ends those it does not know.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let tokens = TokenKey(blake3::derive_key(TOKEN_CONTEXT, &self.0));
        let mut config = EndpointConfig::new(Arc::new(tokens));
        // The library's own names bear a mark of the process, and it drops what bears another's
        // without an answer.
        config.cid_generator(|| Box::new(AnyId));
        config
    }
}

impl std::fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetSecret(…)")
    }
}

/// Names of connections that say nothing.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Keyed BLAKE3.
struct TokenKey([u8; 32]);

impl HmacKey for TokenKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let hash = blake3::keyed_hash(&self.0, data);
        let length = signature_out.len().min(blake3::OUT_LEN);
        signature_out[..length].copy_from_slice(&hash.as_bytes()[..length]);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let given: [u8; blake3::OUT_LEN] = signature.try_into().map_err(|_short| CryptoError)?;
        // `Hash` compares in constant time.
        if expected == blake3::Hash::from(given) { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_a_damaged_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = ResetSecret::of(dir.path());
        assert_eq!(ResetSecret::of(dir.path()).0, first.0);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(dir.path().join(FILE)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(FILE), b"short").unwrap();
        let second = ResetSecret::of(dir.path());
        assert_ne!(second.0, first.0);
        assert_eq!(ResetSecret::of(dir.path()).0, second.0);
        assert_eq!(format!("{second:?}"), "ResetSecret(…)");
        // A directory that cannot be written to is no reason not to serve.
        ResetSecret::of(Path::new("/nonexistent"));
    }

    #[test]
    fn a_token_is_verified_by_the_same_key_only() {
        let (one, other) = (TokenKey([1; 32]), TokenKey([2; 32]));
        let mut token = vec![0; one.signature_len()];
        one.sign(b"connection", &mut token);
        assert!(one.verify(b"connection", &token).is_ok());
        assert!(one.verify(b"connection", &token[..16]).is_err());
        assert!(one.verify(b"another", &token).is_err());
        assert!(other.verify(b"connection", &token).is_err());
    }
}
