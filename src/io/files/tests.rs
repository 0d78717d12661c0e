use rand::{SeedableRng, rngs::ChaCha20Rng};

use super::*;

const NOW: WallTime = WallTime::from_unix(1_800_000_000);

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(3)
}

fn folder() -> (tempfile::TempDir, Folder) {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder::open(&parent.path().join("node")).unwrap();
    (parent, folder)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn keys_are_generated_once_and_accessible_to_their_owner_alone() {
    let (_parent, folder) = folder();
    let mut rng = rng();
    let identity = folder.identity(&mut rng).unwrap().id();
    assert_eq!(folder.identity(&mut rng).unwrap().id(), identity);
    assert_ne!(folder.authority(&mut rng).unwrap().id(), identity);
    let certificate = folder.certificate(|| Zeroizing::new(vec![1, 2, 3])).unwrap();
    assert_eq!(*certificate, [1, 2, 3]);
    assert_eq!(*folder.certificate(|| panic!("the certificate exists")).unwrap(), [1, 2, 3]);
    let onion = folder.onion_keys(NOW, &mut rng).unwrap().public();
    assert_eq!(folder.onion_keys(NOW, &mut rng).unwrap().public(), onion);
    folder.keep_guards(&folder.guards().unwrap()).unwrap();
    folder.guards().unwrap();
    assert_eq!(mode(folder.path()), 0o700);
    for name in [IDENTITY, AUTHORITY, CERTIFICATE, ONION, GUARDS] {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
}

#[test]
fn a_due_onion_key_is_rotated_and_kept_as_the_previous_one() {
    let (_parent, folder) = folder();
    let mut rng = rng();
    let first = folder.onion_keys(NOW, &mut rng).unwrap().public();
    let before = NOW.after(ONION_KEY_LIFETIME - Duration::from_secs(1));
    assert!(folder.rotate_onion_key(before, &mut rng).unwrap().is_none());
    let due = NOW.after(ONION_KEY_LIFETIME);
    let second = folder.rotate_onion_key(due, &mut rng).unwrap().unwrap().public();
    assert_ne!(second, first);
    assert_eq!(folder.onion_keys(due, &mut rng).unwrap().public(), second);
    let kept = folder.kept_onion_keys().unwrap().unwrap();
    assert_eq!(kept.previous.unwrap().public(), first);
    assert!(folder.rotate_onion_key(due, &mut rng).unwrap().is_none());
    let third = folder.onion_keys(due.after(ONION_KEY_LIFETIME), &mut rng).unwrap().public();
    assert_ne!(third, second, "a due key is also rotated when the node starts");
}

#[test]
fn a_secret_open_to_others_is_rejected_with_the_command_to_fix_it() {
    let (_parent, folder) = folder();
    folder.identity(&mut rng()).unwrap();
    let path = folder.path().join(IDENTITY);
    for bad_mode in [0o640, 0o604, 0o620, 0o601] {
        set_mode(&path, bad_mode);
        let error = folder.identity(&mut rng()).err().unwrap();
        assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
    }
    set_mode(&path, 0o400);
    folder.identity(&mut rng()).unwrap();
}

#[test]
fn a_folder_writable_by_others_is_rejected_with_the_command_to_fix_it() {
    let (_parent, folder) = folder();
    set_mode(folder.path(), 0o770);
    let error = Folder::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains(&format!("chmod 700 {}", folder.path().display())), "{error}");
    set_mode(folder.path(), 0o755);
    Folder::open(folder.path()).unwrap();
}

#[test]
fn a_folder_or_secret_of_another_user_is_rejected() {
    const NOBODY: u32 = 65_534;
    let (_parent, folder) = folder();
    folder.identity(&mut rng()).unwrap();
    let (path, file) = (folder.path(), folder.path().join(IDENTITY));
    if let Err(error) = std::os::unix::fs::chown(&file, Some(NOBODY), None) {
        // Only the superuser may change a file's owner.
        eprintln!("skipped: {error}");
        return;
    }
    assert!(matches!(folder.stored_identity(), Err(FileError::OfAnotherUser { path }) if path == file));
    std::os::unix::fs::chown(path, Some(NOBODY), None).unwrap();
    let error = Folder::open(path).unwrap_err();
    assert!(matches!(&error, FileError::OfAnotherUser { path: refused } if refused == path));
    assert!(error.to_string().contains("chown -R"), "{error}");
    // `umbel keys`, run by the superuser, reads the folder of a service.
    assert!(Folder::open_of_any_user(path).unwrap().stored_identity().unwrap().is_some());
}

#[test]
fn a_folder_that_others_could_replace_is_rejected() {
    let parent = tempfile::tempdir().unwrap();
    let shared = parent.path().join("shared");
    fs::create_dir(&shared).unwrap();
    set_mode(&shared, 0o777);
    let error = Folder::open(&shared.join("node")).unwrap_err();
    assert!(error.to_string().contains(&format!("chmod o-w {}", shared.display())), "{error}");
    let link = parent.path().join("link");
    std::os::unix::fs::symlink(shared.join("node"), &link).unwrap();
    assert!(matches!(Folder::open(&link), Err(FileError::ParentOpenToOthers { .. })), "also through a symbolic link");
    set_mode(&shared, 0o1777);
    Folder::open(&shared.join("node")).unwrap();
}

#[test]
fn a_corrupted_key_file_is_rejected_and_never_replaced() {
    let (_parent, folder) = folder();
    let mut rng = rng();
    folder.identity(&mut rng).unwrap();
    folder.onion_keys(NOW, &mut rng).unwrap();
    for name in [IDENTITY, ONION] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut corrupted: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        corrupted.extend((0..whole.len()).map(|position| {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            bytes
        }));
        corrupted.push([whole.as_slice(), b"\n"].concat());
        for bytes in corrupted {
            fs::write(&path, &bytes).unwrap();
            let error = match name {
                IDENTITY => folder.identity(&mut rng).err(),
                _ => folder.onion_keys(NOW, &mut rng).err(),
            };
            assert!(matches!(error, Some(FileError::Corrupted { .. })), "{:?}", String::from_utf8_lossy(&bytes));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::write(&path, &whole).unwrap();
    }
    folder.identity(&mut rng).unwrap();
}

#[test]
fn a_key_file_under_another_name_is_rejected() {
    let (_parent, folder) = folder();
    folder.identity(&mut rng()).unwrap();
    fs::rename(folder.path().join(IDENTITY), folder.path().join(AUTHORITY)).unwrap();
    assert!(matches!(folder.authority(&mut rng()), Err(FileError::Corrupted { .. })));
}

#[test]
fn a_folder_or_an_oversized_file_in_place_of_a_key_is_rejected() {
    let (_parent, folder) = folder();
    fs::create_dir(folder.path().join(IDENTITY)).unwrap();
    assert!(matches!(folder.identity(&mut rng()), Err(FileError::Foreign { .. })));
    let oversized = folder.path().join(AUTHORITY);
    fs::write(&oversized, vec![b'a'; 1 << 20]).unwrap();
    set_mode(&oversized, 0o600);
    assert!(matches!(folder.authority(&mut rng()), Err(FileError::Foreign { .. })));
}

#[test]
fn a_corrupted_guard_sample_is_rejected() {
    let (_parent, folder) = folder();
    fs::write(folder.path().join(GUARDS), [0xff; 9]).unwrap();
    set_mode(&folder.path().join(GUARDS), 0o600);
    assert!(matches!(folder.guards(), Err(FileError::Corrupted { .. })));
}

#[test]
fn a_locked_folder_cannot_be_locked_again() {
    let (_parent, folder) = folder();
    let lock = folder.lock().unwrap();
    assert!(matches!(folder.lock(), Err(FileError::InUse { .. })));
    drop(lock);
    folder.lock().unwrap();
}

#[test]
fn a_write_replaces_the_file_and_leaves_no_other_file() {
    let (_parent, folder) = folder();
    let path = folder.path().join("file");
    for contents in ["one", "two, longer", ""] {
        write_atomically(&path, contents.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), contents);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(write_atomically(&folder.path().join("missing/file"), b"").is_err());
}
