//! The persistent store of a directory authority.
//!
//! [`AuthorityStore`] is a trait, so that a directory of several machines can use another implementation. [`FileStore`]
//! stores all records in one file (`redb`). The authority's core requests the changes
//! ([`crate::directory::AuthorityEvent`]).

use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use crate::base::RelayId;

const RELAYS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("relays");
const DOCUMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("documents");
const CONSENSUS: &str = "consensus";

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[error("{path}: can't {action}: {source}", path = path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: Box<redb::Error>,
}

/// One change of the stored records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores the record of a relay in place of the previous one.
    Put {
        /// The relay.
        relay: RelayId,
        /// The record.
        record: Vec<u8>,
    },
    /// Deletes the record of a relay.
    Delete(RelayId),
    /// Stores the consensus in place of the previous one.
    Publish(Vec<u8>),
}

/// The stored records of an authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredRecords {
    /// The records of relays.
    pub relays: Vec<Vec<u8>>,
    /// The last consensus.
    pub consensus: Option<Vec<u8>>,
}

/// Persistent storage of an authority's records. The methods block.
pub trait AuthorityStore: Send + Sync + 'static {
    /// Reads all records.
    ///
    /// # Errors
    /// When the records can't be read.
    fn load(&self) -> Result<StoredRecords, StoreError>;

    /// Applies all changes in order, or none of them. The changes are durable when the call returns.
    ///
    /// # Errors
    /// When the changes can't be written.
    fn apply(&self, changes: &[Change]) -> Result<(), StoreError>;
}

/// A store in one file (`redb`).
pub struct FileStore {
    path: PathBuf,
    database: Database,
}

impl FileStore {
    /// Opens the store in the file at `path`. Creates the file if absent.
    ///
    /// # Errors
    /// When the file can't be created, is not a store, or is already open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        match Database::create(path) {
            Ok(database) => Ok(Self { path: path.to_owned(), database }),
            Err(error) => Err(StoreError { action: "open it", path: path.to_owned(), source: Box::new(error.into()) }),
        }
    }

    fn read(&self) -> Result<StoredRecords, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut stored = StoredRecords::default();
        match transaction.open_table(RELAYS) {
            Ok(relays) => {
                for entry in relays.iter()? {
                    stored.relays.push(entry?.1.value().to_vec());
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match transaction.open_table(DOCUMENTS) {
            Ok(documents) => stored.consensus = documents.get(CONSENSUS)?.map(|value| value.value().to_vec()),
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(stored)
    }

    fn write(&self, changes: &[Change]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut relays = transaction.open_table(RELAYS)?;
            let mut documents = transaction.open_table(DOCUMENTS)?;
            for change in changes {
                match change {
                    Change::Put { relay, record } => {
                        relays.insert(relay.as_bytes(), record.as_slice())?;
                    }
                    Change::Delete(relay) => {
                        relays.remove(relay.as_bytes())?;
                    }
                    Change::Publish(consensus) => {
                        documents.insert(CONSENSUS, consensus.as_slice())?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn store_error(&self, action: &'static str) -> impl FnOnce(redb::Error) -> StoreError + '_ {
        move |source| StoreError { action, path: self.path.clone(), source: Box::new(source) }
    }
}

impl AuthorityStore for FileStore {
    fn load(&self) -> Result<StoredRecords, StoreError> {
        self.read().map_err(self.store_error("read it"))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(changes).map_err(self.store_error("write it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_records_are_read_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.redb");
        let relay = |number| RelayId::from_bytes([number; 32]);
        let put = |number, record: &[u8]| Change::Put { relay: relay(number), record: record.to_vec() };
        {
            let store = FileStore::open(&path).unwrap();
            assert_eq!(store.load().unwrap(), StoredRecords::default());
            store.apply(&[put(1, b"one"), put(2, b"two"), Change::Publish(b"first".to_vec())]).unwrap();
            store.apply(&[put(1, b"uno"), Change::Delete(relay(2)), Change::Publish(b"second".to_vec())]).unwrap();
            store.apply(&[]).unwrap();
        }
        let stored = FileStore::open(&path).unwrap().load().unwrap();
        assert_eq!(stored, StoredRecords { relays: vec![b"uno".to_vec()], consensus: Some(b"second".to_vec()) });
    }

    #[test]
    fn a_file_that_is_not_a_store_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.redb");
        std::fs::write(&path, b"something else entirely").unwrap();
        let error = FileStore::open(&path).err().unwrap();
        assert!(error.to_string().contains("directory.redb"), "{error}");
    }

    #[test]
    fn a_store_cannot_be_opened_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directory.redb");
        let _open = FileStore::open(&path).unwrap();
        assert!(FileStore::open(&path).is_err());
    }
}
