//! CPU time and memory of processes and their descendants, from /proc.

use std::{collections::BTreeMap, fs};

use serde::Serialize;

/// Clock ticks per second in /proc; the same on all Linux platforms that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: u64 = 1024;

/// CPU time and memory of watched processes so far, by process identifier.
#[derive(Clone, Debug, Default)]
pub(super) struct ProcessUsage(BTreeMap<u32, Usage>);

#[derive(Clone, Copy, Debug)]
struct Usage {
    cpu_seconds: f64,
    /// Resident memory, in bytes.
    resident: u64,
}

/// CPU time of watched processes during a measurement, and their memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct ProcessTotals {
    /// Number of processes.
    pub(super) count: usize,
    /// CPU seconds of all processes.
    pub(super) cpu_seconds: f64,
    /// Resident memory of the largest process at the end, in bytes.
    pub(super) largest_resident: u64,
    /// Resident memory of all processes at the end, in bytes; shared memory counts for each process.
    pub(super) resident: u64,
}

impl ProcessUsage {
    /// The current usage of `roots` and their descendants, without processes that have ended.
    pub(super) fn now(roots: &[u32]) -> Self {
        let all = all_processes();
        let mut watched = BTreeMap::new();
        let mut waiting = roots.to_vec();
        while let Some(pid) = waiting.pop() {
            let Some(stat) = all.get(&pid) else { continue };
            if watched.insert(pid, Usage { cpu_seconds: stat.cpu_seconds, resident: resident_bytes(pid) }).is_none() {
                waiting.extend(all.iter().filter(|(_, other)| other.parent == pid).map(|(child, _)| *child));
            }
        }
        Self(watched)
    }

    /// The CPU time since `before` and the current memory; `None` if no watched process exists.
    pub(super) fn since(&self, before: &Self) -> Option<ProcessTotals> {
        let used =
            |(pid, now): (&u32, &Usage)| now.cpu_seconds - before.0.get(pid).map_or(0.0, |before| before.cpu_seconds);
        (!self.0.is_empty()).then(|| ProcessTotals {
            count: self.0.len(),
            cpu_seconds: self.0.iter().map(used).sum(),
            largest_resident: self.0.values().map(|usage| usage.resident).max().unwrap_or(0),
            resident: self.0.values().map(|usage| usage.resident).sum(),
        })
    }
}

struct Stat {
    parent: u32,
    cpu_seconds: f64,
}

fn all_processes() -> BTreeMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Parent and CPU time from `/proc/PID/stat` (proc_pid_stat(5)). The process name before these fields may contain
/// any character.
fn parse_stat(text: &str) -> Option<Stat> {
    const PARENT: usize = 1;
    const USER_TICKS: usize = 11;
    const SYSTEM_TICKS: usize = 12;
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(PARENT)?.parse().ok()?,
        cpu_seconds: (ticks(USER_TICKS)? + ticks(SYSTEM_TICKS)?) / TICKS_PER_SECOND,
    })
}

/// Resident memory in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    kib.unwrap_or(0).saturating_mul(KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_shifts_no_field() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 100 1 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.parent, stat.cpu_seconds), (7, 2.0));
        assert!(parse_stat("42 (x) S").is_none() && parse_stat("").is_none());
    }

    #[test]
    fn descendants_are_counted_and_earlier_cpu_time_is_subtracted() {
        let watched = ProcessUsage::now(&[std::process::id()]);
        assert!(watched.0.contains_key(&std::process::id()));
        let init = ProcessUsage::now(&[1]);
        assert!(init.0.len() >= watched.0.len());
        let before = ProcessUsage(BTreeMap::from([(5, Usage { cpu_seconds: 2.0, resident: 1 })]));
        let after = ProcessUsage(BTreeMap::from([
            (5, Usage { cpu_seconds: 3.5, resident: 10 }),
            (6, Usage { cpu_seconds: 1.0, resident: 30 }),
        ]));
        let used = after.since(&before).unwrap();
        assert_eq!(used, ProcessTotals { count: 2, cpu_seconds: 2.5, largest_resident: 30, resident: 40 });
        assert_eq!(ProcessUsage::default().since(&ProcessUsage::default()), None);
    }
}
