//! Families `Node` and `NodeName`: chunkservers and edges.

use atoll_proto::NodeId;
use atoll_proto::cluster::NodeInfo;

use super::{Family, Order, Read, StoreError, Transaction, decode, u64_at};

fn key(node: NodeId) -> Vec<u8> {
    Family::Node.key(&[&node.0.to_be_bytes()])
}

fn name_key(name: &str) -> Vec<u8> {
    Family::NodeName.key(&[name.as_bytes()])
}

pub(crate) fn get(read: &impl Read, node: NodeId) -> Result<Option<NodeInfo>, StoreError> {
    read.get_value(&key(node))
}

/// The node with this name.
pub(crate) fn by_name(read: &impl Read, name: &str) -> Result<Option<NodeId>, StoreError> {
    match read.get(&name_key(name))? {
        Some(bytes) => Ok(Some(NodeId(u64_at(&bytes, 0)?))),
        None => Ok(None),
    }
}

pub(crate) fn put(tx: &mut Transaction<'_>, info: &NodeInfo) {
    tx.put_value(key(info.id), info);
    tx.put(name_key(&info.name), info.id.0.to_be_bytes().to_vec());
}

/// Forgets a node and its name.
pub(crate) fn remove(tx: &mut Transaction<'_>, info: &NodeInfo) {
    tx.delete(key(info.id));
    tx.delete(name_key(&info.name));
}

/// All nodes by id.
pub(crate) fn all(read: &impl Read) -> Result<Vec<NodeInfo>, StoreError> {
    let (from, to) = Family::Node.prefix(&[]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        found.push(decode(key, value)?);
        Ok(true)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use atoll_proto::cluster::NodeKind;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn nodes_round_trip(
            id: u64, name in "[a-z0-9-]{1,20}", zone: String, weight: u32, port: u16,
        ) {
            let store = TestStore::new();
            let info = NodeInfo {
                id: NodeId(id),
                name: name.clone(),
                kind: NodeKind::Chunkserver,
                addr: SocketAddr::from(([127, 0, 0, 1], port)),
                zone,
                region: String::new(),
                weight,
                edge: None,
            };
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, &info);
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, NodeId(id)).unwrap(), Some(info.clone()));
            prop_assert_eq!(by_name(&store.rocks, &name).unwrap(), Some(NodeId(id)));
            prop_assert_eq!(all(&store.rocks).unwrap(), vec![info.clone()]);
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &info);
            tx.commit().unwrap();
            prop_assert_eq!(by_name(&store.rocks, &name).unwrap(), None);
            prop_assert_eq!(all(&store.rocks).unwrap(), vec![]);
        }
    }
}
