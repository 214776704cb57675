//! Family `Master`: every master there ever was.

use atoll_proto::masters::{Incarnation, Standing};
use serde::{Deserialize, Serialize};

use super::{Family, Read, StoreError, Transaction};

/// A master that the cluster took in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MasterRecord {
    /// The data directory that the id belongs to.
    pub(crate) incarnation: Incarnation,
    /// When it was retired, milliseconds since the Unix epoch; its id is never used again.
    pub(crate) retired_ms: Option<u64>,
}

impl MasterRecord {
    /// What to tell a master that says it is this one.
    pub(crate) fn standing(&self, incarnation: Incarnation) -> Standing {
        if self.incarnation == incarnation && self.retired_ms.is_none() {
            Standing::Admitted
        } else {
            Standing::Refused
        }
    }
}

fn key(id: u64) -> Vec<u8> {
    Family::Master.key(&[&id.to_be_bytes()])
}

/// What is known of this id.
pub(crate) fn get(read: &impl Read, id: u64) -> Result<Option<MasterRecord>, StoreError> {
    read.get_value(&key(id))
}

pub(crate) fn put(tx: &mut Transaction<'_>, id: u64, record: &MasterRecord) {
    tx.put_value(key(id), record);
}

/// Forgets all of them, when a new history begins.
pub(crate) fn drop_all(tx: &mut Transaction<'_>) -> Result<(), StoreError> {
    let (from, to) = Family::Master.prefix(&[]);
    let mut keys = Vec::new();
    tx.scan(&from, &to, super::Order::Ascending, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(true)
    })?;
    keys.into_iter().for_each(|key| tx.delete(key));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn masters_round_trip(id: u64, bytes: [u8; 16], retired_ms: Option<u64>) {
            let store = TestStore::new();
            let record = MasterRecord { incarnation: Incarnation(bytes), retired_ms };
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, id, &record);
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, id).unwrap(), Some(record));
            prop_assert_eq!(get(&store.rocks, id ^ 1).unwrap(), None);
            let mut tx = Transaction::new(&store.rocks);
            drop_all(&mut tx).unwrap();
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, id).unwrap(), None);
        }
    }

    #[test]
    fn an_id_belongs_to_one_incarnation_until_it_is_retired() {
        let (own, other) = (Incarnation([1; 16]), Incarnation([2; 16]));
        let record = MasterRecord { incarnation: own, retired_ms: None };
        assert_eq!(record.standing(own), Standing::Admitted);
        assert_eq!(record.standing(other), Standing::Refused);
        let retired = MasterRecord { retired_ms: Some(1), ..record };
        assert_eq!(retired.standing(own), Standing::Refused);
    }
}
