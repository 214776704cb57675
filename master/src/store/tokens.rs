//! Families `Token` and `TokenById`: what users may do. Secrets are never stored, only their
//! hashes.

use atoll_proto::ChunkId;
use atoll_proto::master::{Grant, TokenView};
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, decode};

/// A token as it is stored; the hash of its secret is in the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    /// Its public id.
    pub(crate) id: u64,
    /// What it may do.
    pub(crate) grant: Grant,
    /// When it was made, by the state's clock.
    pub(crate) created_ms: u64,
}

fn key(hash: &ChunkId) -> Vec<u8> {
    Family::Token.key(&[hash.as_bytes()])
}

fn id_key(id: u64) -> Vec<u8> {
    Family::TokenById.key(&[&id.to_be_bytes()])
}

/// The token whose secret has this hash.
pub(crate) fn get(read: &impl Read, hash: &ChunkId) -> Result<Option<TokenRecord>, StoreError> {
    read.get_value(&key(hash))
}

/// Adds a token and gives it its public id.
pub(crate) fn insert(
    tx: &mut Transaction<'_>,
    hash: &ChunkId,
    grant: Grant,
    created_ms: u64,
) -> Result<u64, StoreError> {
    let id = counters::add(tx, Counter::LastToken, 1)?;
    tx.put_value(key(hash), &TokenRecord { id, grant, created_ms });
    tx.put_value(id_key(id), hash);
    Ok(id)
}

/// Removes a token; tells whether there was one.
pub(crate) fn remove(tx: &mut Transaction<'_>, id: u64) -> Result<bool, StoreError> {
    let Some(hash) = tx.get_value::<ChunkId>(&id_key(id))? else { return Ok(false) };
    tx.delete(key(&hash));
    tx.delete(id_key(id));
    Ok(true)
}

/// All tokens by id.
pub(crate) fn all(read: &impl Read) -> Result<Vec<TokenView>, StoreError> {
    let (from, to) = Family::Token.prefix(&[]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let TokenRecord { id, grant, created_ms } = decode(key, value)?;
        found.push(TokenView { id, grant, created_ms });
        Ok(true)
    })?;
    found.sort_unstable_by_key(|token| token.id);
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use atoll_proto::master::Verb;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn tokens_round_trip(
            hashes in proptest::collection::btree_set(any::<[u8; 32]>(), 1..5), name: String,
            expires_ms: Option<u64>,
        ) {
            let store = TestStore::new();
            let grant = Grant { name, verbs: vec![Verb::Read], site: None, expires_ms };
            let mut tx = Transaction::new(&store.rocks);
            for hash in &hashes {
                insert(&mut tx, &ChunkId(*hash), grant.clone(), 5).unwrap();
            }
            tx.commit().unwrap();
            let views = all(&store.rocks).unwrap();
            prop_assert_eq!(views.len(), hashes.len());
            for (hash, id) in hashes.iter().zip(1..) {
                let found = get(&store.rocks, &ChunkId(*hash)).unwrap();
                let expected = TokenRecord { id, grant: grant.clone(), created_ms: 5 };
                prop_assert_eq!(found, Some(expected));
            }
            let mut tx = Transaction::new(&store.rocks);
            prop_assert!(remove(&mut tx, 1).unwrap());
            prop_assert!(!remove(&mut tx, 1).unwrap());
            prop_assert_eq!(all(&tx).unwrap().len(), hashes.len() - 1);
        }
    }
}
