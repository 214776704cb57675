//! The masters themselves: who belongs to the cluster, and how that changes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Tells a master's data directory from any other, for ever: made at random at its first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub [u8; 16]);

impl std::fmt::Display for Incarnation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for Incarnation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no incarnation: it has 32 hexadecimal digits");
        if text.len() != 32 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_not_text| wrong())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_not_hex| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// A step of a change of the masters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MastersOp {
    /// A master that runs and belongs to no cluster yet gets the log and the state from now on; it
    /// does not vote.
    Add {
        /// Its id, never used before.
        id: u64,
        /// Where the others reach it.
        addr: SocketAddr,
    },
    /// It votes from now on. Refused while it is far behind.
    Promote {
        /// Which.
        id: u64,
        /// This one leaves in the same step; its id is never used again.
        instead_of: Option<u64>,
    },
    /// It leaves; its id is never used again.
    Remove {
        /// Which.
        id: u64,
    },
}

/// A master, as the leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterView {
    /// Its id.
    pub id: u64,
    /// Where it is reached.
    pub addr: String,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leads: bool,
    /// Last log index it is known to have.
    pub log_index: u64,
    /// Entries it is behind the leader.
    pub behind: u64,
}

/// What a master knows of another one that greets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Nothing.
    Unknown,
    /// The cluster has taken this incarnation in.
    Admitted,
    /// The id belongs to another incarnation, or was retired: it must not be used again.
    Refused,
}

/// The answer to `Greet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Its id.
    pub id: u64,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Whether it has taken part in consensus: its log is not empty.
    pub formed: bool,
    /// What it knows of the asker.
    pub standing: Standing,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_incarnation_is_written_and_read_alike(bytes: [u8; 16]) {
            let incarnation = Incarnation(bytes);
            prop_assert_eq!(incarnation.to_string().parse::<Incarnation>().unwrap(), incarnation);
        }

        #[test]
        fn other_texts_are_refused(text: String) {
            if let Ok(incarnation) = text.parse::<Incarnation>() {
                prop_assert_eq!(incarnation.to_string(), text.to_ascii_lowercase());
            }
        }

        #[test]
        fn no_received_bytes_panic(bytes: Vec<u8>) {
            drop(crate::decode::<Greeting>(&bytes));
            drop(crate::decode::<MastersOp>(&bytes));
            drop(crate::decode::<Vec<MasterView>>(&bytes));
        }
    }
}
