//! Processes that must not outlive the one that started them.
//!
//! The supervisor holds the writing end of each child's standard input. When it ends, however it ends, the kernel
//! closes that end, and the child sees the end of its input: no signal, no process identifier, nothing to race.

use std::{io::Read as _, path::Path, process::exit, thread, time::Duration};

/// Ends this process when standard input ends.
pub(crate) fn end_with_supervisor() {
    thread::spawn(|| {
        await_end_of_input();
        exit(0);
    });
}

/// Waits for standard input to end, then removes `folder`: what the testnet's last process does.
///
/// The others end at the same moment but may still write, so it looks again until the folder stays away.
pub(crate) fn remove_after_supervisor(folder: &Path) {
    await_end_of_input();
    let mut absent = 0_u32;
    for _ in 0..100 {
        if folder.exists() {
            absent = 0;
            let _ = std::fs::remove_dir_all(folder);
        } else if absent == 5 {
            return;
        } else {
            absent = absent.saturating_add(1);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn await_end_of_input() {
    let mut buffer = [0; 64];
    let mut input = std::io::stdin().lock();
    while matches!(input.read(&mut buffer), Ok(read) if read > 0) {}
}
