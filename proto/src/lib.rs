//! What Atoll's roles say to each other.
//!
//! Ids, limits, the manifest encoding, the messages of each role, the frame they travel in and
//! the error they may come back with. Every other crate uses this one. It has no async code, no
//! sockets, no clock and no unsafe: everything here is a value or a pure function, so that each
//! codec can be tested by the thousand.

pub mod backup;
pub mod chunk;
pub mod cluster;
pub mod content;
pub mod content_type;
pub mod edge;
pub mod erase;
pub mod error;
pub mod frame;
pub mod ids;
pub mod lease;
pub mod limits;
pub mod manifest;
pub mod master;
pub mod masters;
pub mod name;
pub mod namespace;
pub mod publish;
pub mod receipt;
pub mod relay;
pub mod rules;
pub mod site;
pub mod tags;
pub mod tree;

pub use content::Content;
pub use error::{Code, Fault, Retry, WireError, WireResult};
pub use ids::{ChunkId, ClusterId, DeployId, Epoch, InodeId, NodeId, PgId, Seq, SessionId};
pub use name::{AliasName, ByteName, SiteName};

/// Encodes a value in the stable binary form used in messages and on disk (postcard).
///
/// # Panics
/// Never for the types of this crate: they hold no maps with failing keys and no floats that
/// postcard refuses; encoding to a growing vector cannot run out of space.
pub fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("types of proto always encode")
}

/// Decodes what [`encode`] wrote. Bytes left over are an error, so that a value has one encoding.
///
/// # Errors
/// When the bytes are not a whole value of this type.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes::<T>(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Malformed { reason: format!("{} bytes left over", rest.len()) }),
        Err(error) => Err(Malformed { reason: error.to_string() }),
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed bytes: {reason}")]
pub struct Malformed {
    /// What is wrong with them.
    pub reason: String,
}
