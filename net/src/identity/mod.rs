//! Who a node is: its role and name, proved by a certificate of the cluster's own authority.
//!
//! Every role loads an [`Identity`] and gives it to [`crate::Endpoint`]; the other side of each
//! connection is then known as a [`Peer`]. `atoll init` makes the authority ([`ClusterCa`]). There
//! is no revocation and no rotation here yet, and users' tokens are not certificates: they travel
//! inside requests.

mod ca;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use atoll_proto::ClusterId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::NetError;

pub use ca::{ClusterCa, WebCert};

/// The DNS name in every node's certificate, by which TLS checks a server. Nodes are told apart
/// by their URI, not by this name.
pub(crate) const SERVER_NAME: &str = "atoll.internal";

const NAME_BYTES_MAX: usize = 64;
const CA_FILE: &str = "ca.pem";
const CERT_FILE: &str = "node.pem";
const KEY_FILE: &str = "node.key";

/// What a process is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds the metadata.
    Master,
    /// Holds chunks.
    Chunkserver,
    /// Answers visitors.
    Edge,
    /// A command, a mount or another user of the cluster.
    Client,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Master, Role::Chunkserver, Role::Edge, Role::Client];

    /// The role's name as it stands in certificates, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Chunkserver => "chunkserver",
            Role::Edge => "edge",
            Role::Client => "client",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Role, NetError> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            NetError::identity(format!(
                "{text:?} is not a role (master, chunkserver, edge or client)"
            ))
        })
    }
}

/// A node as its certificate names it, written `atoll://<cluster>/<role>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The cluster whose authority signed the certificate.
    pub cluster: ClusterId,
    /// What the node may act as.
    pub role: Role,
    /// The node's name, unique within its role by convention of the operator.
    pub name: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "atoll://{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Peer {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Peer, NetError> {
        let wrong = || NetError::identity(format!("{text:?} is not the URI of an Atoll node"));
        let rest = text.strip_prefix("atoll://").ok_or_else(wrong)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        check_name(name)?;
        Ok(Peer {
            cluster: cluster.parse().map_err(NetError::identity)?,
            role: role.parse()?,
            name: name.to_owned(),
        })
    }
}

impl Peer {
    /// Reads the node's URI from its certificate. The chain must have been verified already.
    pub(crate) fn of_certificate(der: &[u8]) -> Result<Peer, NetError> {
        let uris = ca::uris(der)?;
        match uris.as_slice() {
            [uri] => uri.parse(),
            [] => Err(NetError::identity("the certificate names no Atoll node")),
            _ => Err(NetError::identity("the certificate names more than one node")),
        }
    }
}

fn check_name(name: &str) -> Result<(), NetError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(NetError::identity(format!(
            "node name {name:?} must have 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'"
        )));
    }
    Ok(())
}

/// A node's certificate and key, with the authority it trusts. Holds a secret: `Debug` leaves
/// the key out.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The authority's certificate.
    pub ca_pem: String,
    /// The node's certificate.
    pub cert_pem: String,
    /// The node's private key (PKCS #8).
    pub key_pem: String,
}

impl Identity {
    /// Writes `ca.pem`, `node.pem` and `node.key` (mode 0600) into `dir`, which is made if need
    /// be.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), NetError> {
        ca::write_file(&dir.join(CA_FILE), &self.ca_pem, 0o644)?;
        ca::write_file(&dir.join(CERT_FILE), &self.cert_pem, 0o644)?;
        ca::write_file(&dir.join(KEY_FILE), &self.key_pem, 0o600)
    }

    /// Reads what [`Identity::save`] wrote, and checks that it is a certificate of a node.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be.
    pub fn load(dir: &Path) -> Result<Identity, NetError> {
        let identity = Identity {
            ca_pem: ca::read_file(&dir.join(CA_FILE))?,
            cert_pem: ca::read_file(&dir.join(CERT_FILE))?,
            key_pem: ca::read_file(&dir.join(KEY_FILE))?,
        };
        identity.peer()?;
        Ok(identity)
    }

    /// Who this certificate says the node is.
    ///
    /// # Errors
    /// When the certificate does not parse or names no node.
    pub fn peer(&self) -> Result<Peer, NetError> {
        let chain = self.chain()?;
        let leaf = chain.first().ok_or_else(|| NetError::identity("no certificate"))?;
        Peer::of_certificate(leaf)
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>, NetError> {
        certificates(&self.cert_pem)
    }

    pub(crate) fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, NetError> {
        certificates(&self.ca_pem)
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, NetError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(NetError::identity)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer() {
            Ok(peer) => write!(f, "Identity({peer})"),
            Err(error) => write!(f, "Identity({error})"),
        }
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, NetError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(NetError::identity)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn roles_are_the_same_word_everywhere() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
        }
        assert!("Master".parse::<Role>().is_err());
    }

    proptest! {
        #[test]
        fn peers_round_trip(cluster: [u8; 16], role in 0usize..4, name in "[A-Za-z0-9._-]{1,64}") {
            let peer = Peer { cluster: ClusterId(cluster), role: Role::ALL[role], name };
            prop_assert_eq!(peer.to_string().parse::<Peer>().unwrap(), peer);
        }

        #[test]
        fn no_text_panics(text in any::<String>(), tail in any::<String>()) {
            let cluster = ClusterId([7; 16]);
            prop_assert!(text.parse::<Peer>().is_err());
            drop(format!("atoll://{cluster}/{tail}").parse::<Peer>());
        }

        #[test]
        fn no_bytes_panic_as_a_certificate(bytes in any::<Vec<u8>>()) {
            prop_assert!(Peer::of_certificate(&bytes).is_err());
        }
    }
}
