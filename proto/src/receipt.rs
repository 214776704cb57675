//! Receipts: a chunkserver's proof that it has chunks on disk.
//!
//! The master hands every chunkserver the cluster's receipt key when it registers; it checks a
//! receipt in a commit without asking anybody. The MAC is keyed BLAKE3 over everything else.

use serde::{Deserialize, Serialize};

use crate::{ChunkId, Epoch, NodeId, SessionId};

/// The key that all chunkservers and masters of a cluster share.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptKey(pub [u8; 32]);

impl std::fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReceiptKey(..)")
    }
}

/// One server's statement that it has these chunks fsynced, for use by one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The chunkserver that has the chunks.
    pub node: NodeId,
    /// The session that may use this receipt.
    pub session: SessionId,
    /// The placement epoch under which they were placed.
    pub epoch: Epoch,
    /// When it stops being valid, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The chunks, with their lengths in bytes.
    pub chunks: Vec<(ChunkId, u32)>,
    /// Keyed BLAKE3 of the fields above.
    pub mac: [u8; 32],
}

impl Receipt {
    /// Makes a receipt.
    pub fn sign(
        key: &ReceiptKey,
        node: NodeId,
        session: SessionId,
        epoch: Epoch,
        expires_ms: u64,
        chunks: Vec<(ChunkId, u32)>,
    ) -> Self {
        let mut receipt = Self { node, session, epoch, expires_ms, chunks, mac: [0; 32] };
        receipt.mac = receipt.compute(key);
        receipt
    }

    /// Whether the receipt is genuine and may be used by this session at this time.
    pub fn verify(&self, key: &ReceiptKey, session: SessionId, now_ms: u64) -> bool {
        // blake3::Hash compares in constant time.
        self.session == session
            && now_ms < self.expires_ms
            && blake3::Hash::from(self.compute(key)) == blake3::Hash::from(self.mac)
    }

    fn compute(&self, key: &ReceiptKey) -> [u8; 32] {
        let fields = (self.node, self.session, self.epoch, self.expires_ms, &self.chunks);
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        hasher.update(b"atoll receipt v1");
        hasher.update(&crate::encode(&fields));
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_change_spoils_a_receipt() {
        let key = ReceiptKey([7; 32]);
        let good = Receipt::sign(
            &key,
            NodeId(1),
            SessionId(2),
            Epoch(3),
            1000,
            vec![(ChunkId::of(b"a"), 1)],
        );
        assert!(good.verify(&key, SessionId(2), 999));
        assert!(!good.verify(&key, SessionId(2), 1000));
        assert!(!good.verify(&key, SessionId(9), 999));
        assert!(!good.verify(&ReceiptKey([8; 32]), SessionId(2), 999));
        let mut bad = good.clone();
        bad.chunks[0].1 = 2;
        assert!(!bad.verify(&key, SessionId(2), 999));
        let mut bad = good;
        bad.node = NodeId(5);
        assert!(!bad.verify(&key, SessionId(2), 999));
    }
}
