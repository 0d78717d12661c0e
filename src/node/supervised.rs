//! Ends a process when the process that started it ends.
//!
//! The supervisor holds the writing end of each child's standard input. When the supervisor ends for any reason, the
//! kernel closes the pipe, and the child reads the end of its input. This method needs no signal and no process
//! identifier, so it has no race.

use std::{io::Read as _, path::Path, process::exit, thread, time::Duration};

/// Ends this process when standard input ends.
pub(crate) fn end_with_supervisor() {
    thread::spawn(|| {
        await_end_of_input();
        exit(0);
    });
}

/// Waits for the end of standard input, then removes `folder`. A testnet starts a process for this.
///
/// The other processes end simultaneously but may still write, so the removal is repeated until the folder stays
/// absent.
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
