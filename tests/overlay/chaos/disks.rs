//! Small disks for the relays' state folders: file systems of fixed size in a private mount namespace.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Size of a disk. Keys and a consensus of some dozen relays occupy about 40 kB.
const OPTIONS: &str = "size=256k,mode=0700";
/// Name of the file that fills a disk.
const FILLER: &str = "filler";

/// The disks of all relays. A drop unmounts them.
pub(super) struct Disks(Vec<PathBuf>);

impl Disks {
    /// Mounts a disk at each of `folders`, visible only to this thread and to the threads and processes that it starts
    /// afterwards. Returns `None` without the privilege to mount.
    pub(super) fn mount(folders: Vec<PathBuf>) -> Option<Self> {
        unshare(CloneFlags::CLONE_NEWNS).ok()?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).ok()?;
        let mut mounted = Self(Vec::new());
        for folder in folders {
            fs::create_dir_all(&folder).unwrap();
            mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some(OPTIONS)).ok()?;
            mounted.0.push(folder);
        }
        Some(mounted)
    }

    /// Fills the disk of a relay.
    pub(super) fn fill(&self, relay: usize) {
        let mut file = fs::File::create(self.filler(relay)).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    /// Removes the file that fills the disk of a relay.
    pub(super) fn empty(&self, relay: usize) {
        fs::remove_file(self.filler(relay)).unwrap();
    }

    fn filler(&self, relay: usize) -> PathBuf {
        self.0[relay].join(FILLER)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = umount2(folder.as_path(), MntFlags::MNT_DETACH);
        }
    }
}

/// Files in `folder` that an interrupted write has left.
pub(super) fn temporary_files(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".tmp")).count()
}
