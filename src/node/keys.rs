//! `umbel keys`: shows a node's keys, and creates them before the node's first start.
//!
//! The command writes only to a folder that belongs to the current user and that no node has locked. It never changes
//! onion keys, because a running relay does not load new ones, and a service can't read a file of another user.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use data_encoding::HEXUPPER;

use crate::{
    io::files::{FileError, Folder, FolderLock},
    transport::native::Certificate,
};

use super::{Failure, drive::randomness, network, options::data_dir};

/// Options of `umbel keys`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeysOptions {
    /// Role of the node
    role: KeysRole,
    /// Folder of the node [default: the folder of the role in umbel's state folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Roles that have keys; a client has none.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeysRole {
    /// A relay: its identity and the fingerprint of its certificate
    Relay,
    /// A directory: the key for the --authority option of relays and clients
    Directory,
}

/// Prints the public keys of a node. Creates missing keys first if no node has locked the folder.
///
/// # Errors
/// When the folder or a file in it can't be used, or there is no key and none may be created.
pub(crate) fn run(options: &KeysOptions) -> Result<(), Failure> {
    let role = match options.role {
        KeysRole::Relay => "relay",
        KeysRole::Directory => "directory",
    };
    let folder = Folder::open_of_any_user(&data_dir(options.data_dir.as_deref(), role)?)?;
    let lock = lock_if_writable(&folder)?;
    if lock.is_some() {
        create(&folder, options.role)?;
    }
    println!("folder       {}", folder.path().display());
    match options.role {
        KeysRole::Relay => {
            let identity = folder.stored_identity()?.ok_or_else(|| missing(&folder))?;
            println!("identity     {}", identity.id().to_base32());
            // A volunteer has no certificate.
            if let Some(certificate) = folder.stored_certificate()? {
                let certificate = Certificate::from_bytes(&certificate)?;
                println!("fingerprint  {}", HEXUPPER.encode(&certificate.fingerprint()));
            }
        }
        KeysRole::Directory => {
            let authority = folder.stored_authority()?.ok_or_else(|| missing(&folder))?;
            println!("authority    {}", authority.id().to_base32());
        }
    }
    Ok(())
}

/// The lock on the folder; `None` if the folder belongs to another user or is in use.
fn lock_if_writable(folder: &Folder) -> Result<Option<FolderLock>, Failure> {
    if !folder.is_own()? {
        return Ok(None);
    }
    match folder.lock() {
        Ok(lock) => Ok(Some(lock)),
        Err(FileError::InUse { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create(folder: &Folder, role: KeysRole) -> Result<(), Failure> {
    let mut rng = randomness()?;
    match role {
        KeysRole::Relay => {
            folder.identity(&mut rng)?;
            network::certificate(folder)?;
        }
        KeysRole::Directory => _ = folder.authority(&mut rng)?,
    }
    Ok(())
}

fn missing(folder: &Folder) -> Failure {
    Failure::usage(format!(
        "{}: the folder has no keys and belongs to another user or to a starting node: start the node, then try again",
        folder.path().display()
    ))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        fs,
        path::Path,
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{base::WallTime, io::clock::wall_time};

    fn keys(folder: &Path) -> Result<(), Failure> {
        run(&KeysOptions { role: KeysRole::Relay, data_dir: Some(folder.to_owned()) })
    }

    /// Each file with its contents and its modification time.
    fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let written = entry.metadata().unwrap().modified().unwrap();
            (entry.file_name().into_string().unwrap(), (fs::read(entry.path()).unwrap(), written))
        });
        entries.collect()
    }

    #[test]
    fn the_keys_of_a_folder_in_use_are_shown_and_unchanged() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("relay");
        let folder = Folder::open(&path).unwrap();
        let lock = folder.lock().unwrap();
        assert!(keys(&path).is_err(), "no keys exist, and none may be created");
        drop(lock);
        keys(&path).unwrap();
        let long_ago: WallTime = wall_time().before(Duration::from_secs(30 * 24 * 60 * 60));
        folder.onion_keys(long_ago, &mut randomness().unwrap()).unwrap();
        let before = files(&path);
        keys(&path).unwrap();
        let _lock = folder.lock().unwrap();
        keys(&path).unwrap();
        assert_eq!(files(&path), before);
    }
}
