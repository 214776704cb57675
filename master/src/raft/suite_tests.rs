//! The log store and the state machine under the tests that openraft ships for storage.

use openraft::testing::{StoreBuilder, Suite};

use super::Storage;
use super::entry::{StorageError, TypeConfig};
use super::log::LogStore;
use super::machine::StateMachine;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError> {
        let data = tempfile::tempdir().expect("a directory for data");
        let storage = Storage::open(data.path()).expect("an empty store opens");
        Ok((data, storage.log, storage.machine))
    }
}

#[test]
fn the_store_does_what_openraft_expects_of_one() {
    Suite::test_all(Builder).expect("every test of the suite passes");
}
