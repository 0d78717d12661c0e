//! A node's folder: keys, certificate, guards and the cached consensus.
//!
//! Owns the reading and writing of these files. Folders and secret files are accessible to their owner alone. Each file
//! is written under a temporary name and renamed, so that it is complete or absent. A corrupted file is rejected, never
//! replaced silently. Driven by the node at its start, and when keys rotate or guards change. Protects against other
//! users of the machine (`threat-model.md`).

mod atomic;
mod keyfile;

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use core::time::Duration;

use rand::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    base::WallTime,
    crypto::{IdentityKey, OnionSecret},
    handshake::OnionKeyring,
    path::GuardSample,
};

pub use atomic::write_atomically;
use keyfile::KeyFile;

/// Age at which the onion key is rotated. As the previous key it remains valid for the same time.
pub const ONION_KEY_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const MAX_SECRET_LEN: u64 = 64 << 10;
const MAX_GUARDS_LEN: u64 = 256 << 10;
const IDENTITY: &str = "identity.key";
const AUTHORITY: &str = "authority.key";
const ONION: &str = "onion.key";
const CERTIFICATE: &str = "certificate.key";
const GUARDS: &str = "guards";
const CONSENSUS: &str = "consensus";
const LOCK: &str = "lock";

/// Reason for which a file of the node's folder can't be used. The text states the remedy.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system call failed.
    #[error("{path}: can't {action}: {source}", path = path.display())]
    Io {
        /// The failed action.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A secret file that users other than its owner may read or write.
    #[error("{path}: the file has a secret, but other users may open it; run: chmod 600 {path}", path = path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
    },
    /// A folder that users other than its owner may write to.
    #[error("{path}: other users may write to this folder; run: chmod 700 {path}", path = path.display())]
    FolderOpenToOthers {
        /// The folder.
        path: PathBuf,
    },
    /// A folder or secret file of another user, who could replace or read its keys.
    #[error("{path}: this belongs to another user; run umbel as that user, or run: chown -R $(id -u) {path}", path = path.display())]
    OfAnotherUser {
        /// The folder or file.
        path: PathBuf,
    },
    /// A folder in whose path another user could replace a folder.
    #[error("{path}: other users could replace the folder in it; run: chmod o-w {path}, or choose another folder", path = path.display())]
    ParentOpenToOthers {
        /// The parent folder.
        path: PathBuf,
    },
    /// Not a regular file, or larger than the maximum for such a file.
    #[error("{path}: not a file of umbel", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The contents fail a check.
    #[error("{path}: corrupted ({reason}); restore it from a backup, or remove it so that a new one is created", path = path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// Another process has locked this folder.
    #[error("{path}: another umbel process uses this folder", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

impl FileError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// The lock of a folder by this process, released when dropped.
#[derive(Debug)]
pub struct FolderLock {
    _file: fs::File,
}

/// A node's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    /// The user that owns the folder, and must own its secret files.
    owner: u32,
}

impl Folder {
    /// Opens the folder at `path`; creates it and its parents (mode 0700) if absent.
    ///
    /// # Errors
    /// When it can't be created, belongs to another user, or other users may write to it or replace it.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let folder = Self::open_of_any_user(path)?;
        if folder.is_own()? { Ok(folder) } else { Err(FileError::OfAnotherUser { path: folder.path }) }
    }

    /// As [`Self::open`], also for a folder of another user: the superuser may read a service's folder.
    ///
    /// # Errors
    /// As for [`Self::open`], except for the owner.
    pub fn open_of_any_user(path: &Path) -> Result<Self, FileError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::io("create it", path))?;
        let metadata = fs::metadata(path).map_err(FileError::io("read its metadata", path))?;
        if metadata.mode() & 0o022 != 0 {
            return Err(FileError::FolderOpenToOthers { path: path.to_owned() });
        }
        // A symbolic link in the path counts as the folder to which it leads.
        let whole = fs::canonicalize(path).map_err(FileError::io("resolve its path", path))?;
        for parent in whole.ancestors().skip(1) {
            let mode = fs::metadata(parent).map_err(FileError::io("read its metadata", parent))?.mode();
            // In a folder with the sticky bit, such as /tmp, only the owner of an entry can replace it.
            if mode & 0o1002 == 0o002 {
                return Err(FileError::ParentOpenToOthers { path: parent.to_owned() });
            }
        }
        Ok(Self { path: path.to_owned(), owner: metadata.uid() })
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the folder for this process, since two nodes must not run with one identity.
    ///
    /// # Errors
    /// [`FileError::InUse`], or when a system call fails.
    pub fn lock(&self) -> Result<FolderLock, FileError> {
        let path = self.path.join(LOCK);
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(FileError::io("open it", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(FolderLock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(FileError::InUse { path: self.path.clone() }),
            Err(fs::TryLockError::Error(error)) => Err(FileError::io("lock it", &path)(error)),
        }
    }

    /// Whether the effective user of this process owns the folder. The node can't read files that a process of another
    /// user writes to its folder.
    ///
    /// # Errors
    /// When a system call fails.
    pub fn is_own(&self) -> Result<bool, FileError> {
        // On Linux, the effective user of the process owns this folder.
        let process = Path::new("/proc/self");
        let ours = fs::metadata(process).map_err(FileError::io("read its metadata", process))?;
        Ok(self.owner == ours.uid())
    }

    /// The relay's identity; `None` if there is no file.
    ///
    /// # Errors
    /// When the file can't be read, is accessible to other users, or is corrupted.
    pub fn stored_identity(&self) -> Result<Option<IdentityKey>, FileError> {
        self.load(IDENTITY, signing_key)
    }

    /// The directory authority's key; `None` if there is no file.
    ///
    /// # Errors
    /// As for [`Self::stored_identity`].
    pub fn stored_authority(&self) -> Result<Option<IdentityKey>, FileError> {
        self.load(AUTHORITY, signing_key)
    }

    /// The DTLS certificate with its key; `None` if there is no file.
    ///
    /// # Errors
    /// As for [`Self::stored_identity`].
    pub fn stored_certificate(&self) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
        self.load(CERTIFICATE, |file| file.bytes("certificate"))
    }

    /// The relay's identity, generated if there is no file.
    ///
    /// # Errors
    /// When the file can't be read or written, is accessible to other users, or is corrupted.
    pub fn identity<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> Result<IdentityKey, FileError> {
        self.signing_key(IDENTITY, rng)
    }

    /// The directory authority's key, generated if there is no file.
    ///
    /// # Errors
    /// As for [`Self::identity`].
    pub fn authority<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> Result<IdentityKey, FileError> {
        self.signing_key(AUTHORITY, rng)
    }

    /// The relay's onion keys, generated if there is no file, rotated if due at `now`.
    ///
    /// # Errors
    /// As for [`Self::identity`].
    pub fn onion_keys<R: CryptoRng + ?Sized>(&self, now: WallTime, rng: &mut R) -> Result<OnionKeyring, FileError> {
        let kept = match self.kept_onion_keys()? {
            Some(kept) if now.since(kept.made) < ONION_KEY_LIFETIME => kept,
            kept => self.make_onion_key(now, kept.map(|kept| kept.current), rng)?,
        };
        Ok(OnionKeyring::new(kept.current, kept.previous))
    }

    /// Rotates the onion key if that is due at `now`; returns the new key. The file is written before this returns.
    ///
    /// # Errors
    /// As for [`Self::identity`].
    pub fn rotate_onion_key<R: CryptoRng + ?Sized>(
        &self,
        now: WallTime,
        rng: &mut R,
    ) -> Result<Option<OnionSecret>, FileError> {
        match self.kept_onion_keys()? {
            Some(kept) if now.since(kept.made) < ONION_KEY_LIFETIME => Ok(None),
            kept => Ok(Some(self.make_onion_key(now, kept.map(|kept| kept.current), rng)?.current)),
        }
    }

    /// The DTLS certificate with its key, in the transport's encoding; generated by `make` if there is no file.
    ///
    /// # Errors
    /// As for [`Self::identity`].
    pub fn certificate(&self, make: impl FnOnce() -> Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, FileError> {
        self.load_or_make(
            CERTIFICATE,
            |file| file.bytes("certificate"),
            || KeyFile::new(CERTIFICATE).with_bytes("certificate", &make()),
        )
    }

    /// The client's guard sample; empty if there is no file.
    ///
    /// # Errors
    /// As for [`Self::identity`].
    pub fn guards(&self) -> Result<GuardSample, FileError> {
        let path = self.path.join(GUARDS);
        match read_secret(&path, self.owner, MAX_GUARDS_LEN)? {
            Some(bytes) => {
                GuardSample::decode(&bytes).map_err(|_| FileError::Corrupted { path, reason: "not a guard sample" })
            }
            None => Ok(GuardSample::default()),
        }
    }

    /// Writes the client's guard sample.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep_guards(&self, guards: &GuardSample) -> Result<(), FileError> {
        write_atomically(&self.path.join(GUARDS), &guards.encode())
    }

    /// The path of the cached consensus.
    #[must_use]
    pub fn consensus_cache(&self) -> PathBuf {
        self.path.join(CONSENSUS)
    }

    fn signing_key<R: CryptoRng + ?Sized>(&self, name: &'static str, rng: &mut R) -> Result<IdentityKey, FileError> {
        self.load_or_make(name, signing_key, || {
            KeyFile::new(name).with_bytes("secret", IdentityKey::generate(rng).to_bytes().as_slice())
        })
    }

    fn kept_onion_keys(&self) -> Result<Option<KeptOnionKeys>, FileError> {
        self.load(ONION, KeptOnionKeys::read)
    }

    fn make_onion_key<R: CryptoRng + ?Sized>(
        &self,
        now: WallTime,
        previous: Option<OnionSecret>,
        rng: &mut R,
    ) -> Result<KeptOnionKeys, FileError> {
        let kept = KeptOnionKeys { made: now, current: OnionSecret::generate(rng), previous };
        write_atomically(&self.path.join(ONION), kept.write().text().as_bytes())?;
        Ok(kept)
    }

    fn load<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&KeyFile) -> Result<T, &'static str>,
    ) -> Result<Option<T>, FileError> {
        let path = self.path.join(name);
        let Some(bytes) = read_secret(&path, self.owner, MAX_SECRET_LEN)? else { return Ok(None) };
        let value = KeyFile::parse(name, &bytes).and_then(|file| read(&file));
        value.map(Some).map_err(|reason| FileError::Corrupted { path, reason })
    }

    /// Reads the file with `read`; creates it with `make` if it is absent. If another process creates the file at the
    /// same time, the first file is used.
    fn load_or_make<T>(
        &self,
        name: &'static str,
        read: impl Fn(&KeyFile) -> Result<T, &'static str>,
        make: impl FnOnce() -> KeyFile,
    ) -> Result<T, FileError> {
        if let Some(value) = self.load(name, &read)? {
            return Ok(value);
        }
        let path = self.path.join(name);
        atomic::create_atomically(&path, make().text().as_bytes())?;
        self.load(name, &read)?.ok_or(FileError::Corrupted { path, reason: "the file was removed" })
    }
}

struct KeptOnionKeys {
    made: WallTime,
    current: OnionSecret,
    previous: Option<OnionSecret>,
}

impl KeptOnionKeys {
    fn read(file: &KeyFile) -> Result<Self, &'static str> {
        let previous = if file.has("previous") { Some(file.key("previous")?) } else { None };
        Ok(Self {
            made: WallTime::from_unix(file.number("made")?),
            current: OnionSecret::from_bytes(*file.key("current")?),
            previous: previous.map(|secret| OnionSecret::from_bytes(*secret)),
        })
    }

    fn write(&self) -> KeyFile {
        let file = KeyFile::new(ONION)
            .with_number("made", self.made.as_unix())
            .with_bytes("current", self.current.to_bytes().as_slice());
        match &self.previous {
            Some(previous) => file.with_bytes("previous", previous.to_bytes().as_slice()),
            None => file,
        }
    }
}

fn signing_key(file: &KeyFile) -> Result<IdentityKey, &'static str> {
    file.key("secret").map(|seed| IdentityKey::from_bytes(&seed))
}

/// Reads a file that must belong to `owner` and be accessible to its owner alone; `None` if there is no file.
fn read_secret(path: &Path, owner: u32, max_len: u64) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("open it", path)(error)),
    };
    let metadata = file.metadata().map_err(FileError::io("read its metadata", path))?;
    if !metadata.is_file() || metadata.len() > max_len {
        return Err(FileError::Foreign { path: path.to_owned() });
    }
    if metadata.uid() != owner {
        return Err(FileError::OfAnotherUser { path: path.to_owned() });
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(FileError::OpenToOthers { path: path.to_owned() });
    }
    let capacity = usize::try_from(max_len).unwrap_or(usize::MAX);
    // The buffer has its full capacity from the start, since growth would leave copies of a secret in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(max_len).read_to_end(&mut bytes).map_err(FileError::io("read it", path))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
