//! `umbel keys`: makes and shows a node's keys.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use data_encoding::HEXUPPER;

use crate::io::{clock::wall_time, files::Folder};

use super::{Failure, drive::randomness, network, options::data_dir};

/// Options of `umbel keys`.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeysOptions {
    /// Whose keys
    role: KeysRole,
    /// Folder of the node [default: that of the role in umbel's state folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Nodes that have keys; a client has none.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeysRole {
    /// A relay: its identity and the fingerprint of its certificate
    Relay,
    /// A directory: the key that relays and clients name with --authority
    Directory,
}

/// Makes the keys that are not there yet and prints their public halves.
///
/// # Errors
/// When the folder or a file in it can't be used.
pub(crate) fn run(options: &KeysOptions) -> Result<(), Failure> {
    let mut rng = randomness()?;
    let role = match options.role {
        KeysRole::Relay => "relay",
        KeysRole::Directory => "directory",
    };
    let folder = Folder::open(&data_dir(options.data_dir.as_deref(), role)?).map_err(Failure::usage)?;
    println!("folder       {}", folder.path().display());
    match options.role {
        KeysRole::Relay => {
            let identity = folder.identity(&mut rng).map_err(Failure::usage)?.id();
            folder.onion_keys(wall_time(), &mut rng).map_err(Failure::usage)?;
            println!("identity     {}", identity.to_base32());
            println!("fingerprint  {}", HEXUPPER.encode(&network::certificate(&folder)?.fingerprint()));
        }
        KeysRole::Directory => {
            let authority = folder.authority(&mut rng).map_err(Failure::usage)?.id();
            println!("authority    {}", authority.to_base32());
        }
    }
    Ok(())
}
