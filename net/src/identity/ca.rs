//! The cluster's certificate authority, and the files certificates are kept in.
//!
//! `atoll init` and `atoll dev` call [`ClusterCa`]; nodes only ever see what it issued. The key
//! never leaves the directory it was saved in.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use atoll_proto::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Identity, Peer, Role, SERVER_NAME, check_name};
use crate::NetError;

const CA_CERT_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Certificates are valid from this long ago, for nodes whose clocks lag.
const CLOCK_MARGIN: Duration = DAY;
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const NODE_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Browsers refuse web certificates that are valid for longer than 398 days.
const WEB_LIFETIME: Duration = Duration::from_secs(390 * 24 * 3600);

/// The authority that signs the certificates of one cluster. Holds a secret: `Debug` leaves the
/// key out.
pub struct ClusterCa {
    cluster: ClusterId,
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate for the edges' HTTPS listeners.
#[derive(Clone, PartialEq, Eq)]
pub struct WebCert {
    /// The certificate, ready to be sent to clients that trust the cluster's authority.
    pub chain_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl ClusterCa {
    /// Makes a new authority for `cluster`, with a new key. Nothing is written.
    ///
    /// # Errors
    /// When the cryptographic library refuses; not expected.
    pub fn create(cluster: ClusterId) -> Result<ClusterCa, NetError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("Atoll cluster {cluster}"));
        params.subject_alt_names =
            vec![SanType::URI(ca_uri(cluster).try_into().map_err(NetError::identity)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key).map_err(NetError::identity)?;
        ClusterCa::from_pem(certificate.pem(), key.serialize_pem())
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into `dir`, which is made if need be.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), NetError> {
        write_file(&dir.join(CA_KEY_FILE), &self.key_pem, 0o600)?;
        write_file(&dir.join(CA_CERT_FILE), &self.cert_pem, 0o644)
    }

    /// Reads what [`ClusterCa::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be.
    pub fn load(dir: &Path) -> Result<ClusterCa, NetError> {
        ClusterCa::from_pem(read_file(&dir.join(CA_CERT_FILE))?, read_file(&dir.join(CA_KEY_FILE))?)
    }

    fn from_pem(cert_pem: String, key_pem: String) -> Result<ClusterCa, NetError> {
        let der =
            CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(NetError::identity)?;
        let cluster = uris(&der)?
            .iter()
            .find_map(|uri| uri.strip_prefix("atoll://")?.strip_suffix("/ca")?.parse().ok())
            .ok_or_else(|| NetError::identity("not the certificate of a cluster's authority"))?;
        let key = KeyPair::from_pem(&key_pem).map_err(NetError::identity)?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(NetError::identity)?;
        if parsed.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key).as_slice()
        {
            return Err(NetError::identity("the authority's key does not fit its certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(NetError::identity)?;
        Ok(ClusterCa { cluster, cert_pem, key_pem, issuer })
    }

    /// The cluster this authority speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority's certificate: what clients of the edges trust, and nodes of each other.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Makes a key and a certificate for a node, good for both ends of internal links.
    ///
    /// # Errors
    /// When the name is not 1 to 64 letters, digits, dots, dashes or underscores.
    pub fn issue(&self, role: Role, name: &str) -> Result<Identity, NetError> {
        check_name(name)?;
        let peer = Peer { cluster: self.cluster, role, name: name.to_owned() };
        let mut params =
            CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(NetError::identity)?;
        let uri = peer.to_string().try_into().map_err(NetError::identity)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name = subject(&format!("{role} {name}"));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (cert_pem, key_pem) = self.sign(params, NODE_LIFETIME)?;
        Ok(Identity { ca_pem: self.cert_pem.clone(), cert_pem, key_pem })
    }

    /// Makes a key and a certificate for the edges' HTTPS listeners. Such a certificate is no
    /// node's identity: internal links refuse it.
    ///
    /// # Errors
    /// When there is no name, or one is no DNS name or IP address, or is the internal one.
    pub fn issue_web(&self, dns_names: &[String]) -> Result<WebCert, NetError> {
        let first = dns_names.first().ok_or_else(|| NetError::identity("no name to certify"))?;
        for name in dns_names {
            check_web_name(name)?;
        }
        let mut params = CertificateParams::new(dns_names.to_vec()).map_err(NetError::identity)?;
        // A common name is at most 64 characters (RFC 5280, ub-common-name).
        params.distinguished_name = subject(if first.len() <= 64 { first } else { "Atoll edge" });
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (chain_pem, key_pem) = self.sign(params, WEB_LIFETIME)?;
        Ok(WebCert { chain_pem, key_pem })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        lifetime: Duration,
    ) -> Result<(String, String), NetError> {
        let key = new_key()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, lifetime);
        let certificate = params.signed_by(&key, &self.issuer).map_err(NetError::identity)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({})", self.cluster)
    }
}

impl fmt::Debug for WebCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebCert(..)")
    }
}

fn new_key() -> Result<KeyPair, NetError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(NetError::identity)
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Atoll");
    name.push(DnType::CommonName, common_name);
    name
}

fn ca_uri(cluster: ClusterId) -> String {
    format!("atoll://{cluster}/ca")
}

fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_MARGIN).into();
    params.not_after = (now + lifetime).into();
}

fn check_web_name(name: &str) -> Result<(), NetError> {
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() > 253 || !host.split('.').all(label) || name == SERVER_NAME {
        return Err(NetError::identity(format!("{name:?} cannot stand in a web certificate")));
    }
    Ok(())
}

/// The URIs among a certificate's alternative names.
pub(super) fn uris(der: &[u8]) -> Result<Vec<String>, NetError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(NetError::identity)?;
    if !rest.is_empty() {
        return Err(NetError::identity("bytes follow the certificate"));
    }
    let names = certificate.subject_alternative_name().map_err(NetError::identity)?;
    Ok(names.map_or_else(Vec::new, |names| {
        let uri = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        };
        names.value.general_names.iter().filter_map(uri).collect()
    }))
}

pub(super) fn read_file(path: &Path) -> Result<String, NetError> {
    fs::read_to_string(path).map_err(|source| NetError::File {
        verb: "read",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file whole or not at all, durably, with exactly this mode.
pub(super) fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), NetError> {
    let parent = path.parent().expect("callers join a file name to a directory");
    let part = path.with_extension(format!("part{}", std::process::id()));
    let write = || {
        fs::create_dir_all(parent)?;
        drop(fs::remove_file(&part));
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        fs::File::open(parent)?.sync_all()
    };
    write().map_err(|source| NetError::File { verb: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const CLUSTER: ClusterId = ClusterId([0x5a; 16]);

    #[test]
    fn authority_and_identity_survive_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let made = ClusterCa::create(CLUSTER).unwrap();
        made.save(dir.path()).unwrap();
        made.save(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let loaded = ClusterCa::load(dir.path()).unwrap();
        assert_eq!(loaded.cluster(), CLUSTER);
        assert_eq!(loaded.cert_pem(), made.cert_pem());

        let identity = loaded.issue(Role::Edge, "reef-1.example").unwrap();
        let node = dir.path().join("node");
        identity.save(&node).unwrap();
        let mode = fs::metadata(node.join("node.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Identity::load(&node).unwrap();
        assert_eq!(again, identity);
        let peer = again.peer().unwrap();
        let expected = Peer { cluster: CLUSTER, role: Role::Edge, name: "reef-1.example".into() };
        assert_eq!(peer, expected);
        assert!(!format!("{again:?}{loaded:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_of_another_authority_is_noticed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        ClusterCa::create(CLUSTER).unwrap().save(one.path()).unwrap();
        ClusterCa::create(CLUSTER).unwrap().save(two.path()).unwrap();
        fs::copy(two.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        assert!(ClusterCa::load(one.path()).is_err());
    }

    #[test]
    fn names_are_checked() {
        let ca = ClusterCa::create(CLUSTER).unwrap();
        for bad in ["", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(ca.issue(Role::Master, bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a b", "a..b", "atoll.internal", "http://x"] {
            assert!(ca.issue_web(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(ca.issue_web(&[]).is_err());
    }

    #[test]
    fn a_web_certificate_is_no_identity_and_openssl_style_fields_are_there() {
        let ca = ClusterCa::create(CLUSTER).unwrap();
        let names = ["blog.localhost".to_owned(), "*.localhost".into(), "127.0.0.1".into()];
        let web = ca.issue_web(&names).unwrap();
        let der = CertificateDer::from_pem_slice(web.chain_pem.as_bytes()).unwrap();
        assert!(Peer::of_certificate(&der).is_err());

        let (_, leaf) = X509Certificate::from_der(&der).unwrap();
        assert!(!leaf.is_ca());
        let ca_der = CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap();
        let (_, root) = X509Certificate::from_der(&ca_der).unwrap();
        assert!(root.is_ca());
        assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
        assert_eq!(leaf.issuer(), root.subject());
        let days = (leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp())
            / 86_400;
        assert!(days < 398);
    }
}
