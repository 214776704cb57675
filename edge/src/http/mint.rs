//! Certificates made on demand, for a cluster on one machine.
//!
//! `atoll dev` gives its edges an authority of their own. A wildcard such as `*.localhost` would
//! not do: OpenSSL refuses a wildcard directly below a top-level name. [`super::tls`] asks for the
//! name that a visitor names (SNI). A real cluster has certificates in files and no authority at
//! its edges.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use atoll_net::{ClusterCa, NetError};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Names that are remembered; further ones get the certificate in the files.
const NAMES_MAX: usize = 4096;

/// An authority and what it has made so far.
pub struct Mint {
    authority: ClusterCa,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Mint {
    /// Loads the authority from a directory with `ca.pem` and `ca.key`. Blocking.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(dir: &Path) -> Result<Mint, NetError> {
        Ok(Mint { authority: ClusterCa::load(dir)?, made: Mutex::default() })
    }

    /// The certificate for a name, made if need be; `None` when it cannot be.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = made.get(&name) {
            return Some(found.clone());
        }
        if made.len() >= NAMES_MAX {
            return None;
        }
        // Under the lock, so that a name is made once; it takes a tenth of a millisecond.
        let new = Arc::new(self.make(&name)?);
        made.insert(name, new.clone());
        Some(new)
    }

    fn make(&self, name: &str) -> Option<CertifiedKey> {
        let web = self.authority.issue_web(&[name.to_owned()]).ok()?;
        let chain = CertificateDer::pem_slice_iter(web.chain_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().ok()?;
        let key = PrivateKeyDer::from_pem_slice(web.key_pem.as_bytes()).ok()?;
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).ok()
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mint({:?})", self.authority)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_name_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = atoll_proto::ClusterId([3; 16]);
        ClusterCa::create(cluster).unwrap().save(dir.path()).unwrap();
        let mint = Mint::load(dir.path()).unwrap();
        let blog = mint.certificate("blog.localhost").unwrap();
        assert!(Arc::ptr_eq(&blog, &mint.certificate("Blog.localhost").unwrap()));
        assert!(!Arc::ptr_eq(&blog, &mint.certificate("shop.localhost").unwrap()));
        assert!(mint.certificate("not a name").is_none());
        assert!(Mint::load(&dir.path().join("absent")).is_err());
    }
}
