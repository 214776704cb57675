//! The highest epoch and term a node ever heard from a master, and what they keep out: pure.
//!
//! A master that answers with less was restored from an old copy, or was deposed and does not
//! know. Following it could place chunks where nobody looks for them.

use atoll_proto::Epoch;

/// The highest epoch and term ever heard. Kept on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fence {
    /// Of the placement table.
    pub(crate) epoch: Epoch,
    /// Of the masters' consensus.
    pub(crate) term: u64,
}

/// A master that knows less than was heard before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Outdated {
    /// Its placement table is older.
    #[error(
        "the master is at placement epoch {heard}, but epoch {known} was heard before: it was \
         restored from an old copy, or belongs to another cluster"
    )]
    Epoch {
        /// What it said.
        heard: Epoch,
        /// What was heard before.
        known: Epoch,
    },
    /// Another master was elected since.
    #[error("the master is in term {heard}, but term {known} was heard before: it was deposed")]
    Term {
        /// What it said.
        heard: u64,
        /// What was heard before.
        known: u64,
    },
}

impl Fence {
    /// The fence after hearing this epoch and term.
    ///
    /// # Errors
    /// When either is less than what was heard before.
    pub(crate) fn admit(self, epoch: Epoch, term: u64) -> Result<Self, Outdated> {
        if term < self.term {
            return Err(Outdated::Term { heard: term, known: self.term });
        }
        if epoch < self.epoch {
            return Err(Outdated::Epoch { heard: epoch, known: self.epoch });
        }
        Ok(Self { epoch, term })
    }

    /// As it is kept on disk.
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.epoch.0, self.term].map(u64::to_be_bytes).concat()
    }

    /// Reads what [`Fence::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [epoch, term] = *words else { return None };
        Some(Self { epoch: Epoch(u64::from_be_bytes(epoch)), term: u64::from_be_bytes(term) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_fence_never_goes_back(heard: Vec<(u64, u64)>) {
            let mut fence = Fence::default();
            for (epoch, term) in heard {
                let next = fence.admit(Epoch(epoch), term);
                prop_assert_eq!(next.is_ok(), epoch >= fence.epoch.0 && term >= fence.term);
                fence = next.unwrap_or(fence);
            }
        }

        #[test]
        fn a_fence_round_trips(epoch: u64, term: u64, bytes: Vec<u8>) {
            let fence = Fence { epoch: Epoch(epoch), term };
            prop_assert_eq!(Fence::decode(&fence.encode()).unwrap(), fence);
            prop_assert_eq!(Fence::decode(&bytes).is_some(), bytes.len() == 16);
        }
    }
}
