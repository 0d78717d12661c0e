//! Replays all corpora, and mutations of them.

use std::{fs, path::PathBuf};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::{FuzzTarget, TARGETS};

/// Number of mutations of each seed and each fixed finding in an ordinary test run. The entries that a fuzzer has found
/// are mutations already.
const MUTATIONS: u64 = 200;
/// The same for a target that runs a whole machine, which takes longer.
const MUTATIONS_OF_SEQUENCE: u64 = 40;

fn targets() -> impl Iterator<Item = &'static FuzzTarget> {
    TARGETS.iter().copied().flatten()
}

fn fuzz_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn corpus(target: &FuzzTarget) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz_folder().join("corpus").join(target.name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = files
        .map(|file| file.unwrap().path())
        .map(|file| (file.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&file).unwrap()))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}

/// Whether an entry is one that libFuzzer has found and named by its SHA-1 (`cargo xtask fuzz`).
fn is_grown(file: &str) -> bool {
    file.len() == 40 && file.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Prints the name of `input`, then runs `target` on it. The output is shown only if the test fails; the last line
/// names the failing input.
fn run(target: &FuzzTarget, file: &str, mutation: Option<u64>, input: &[u8]) {
    println!("{} {file} {mutation:?}", target.name);
    (target.run)(input);
}

#[test]
fn every_corpus_passes() {
    for target in targets() {
        for (file, input) in corpus(target) {
            run(target, &file, None, &input);
        }
    }
}

#[test]
fn mutations_of_every_corpus_pass() {
    for target in targets() {
        let mutations = if target.name.ends_with("_sequence") { MUTATIONS_OF_SEQUENCE } else { MUTATIONS };
        for (file, input) in corpus(target).into_iter().filter(|(file, _)| !is_grown(file)) {
            for seed in 0..mutations {
                run(target, &file, Some(seed), &mutate(&input, seed));
            }
        }
    }
}

/// Changes `input` one to three times: changes bytes, truncates, or removes or duplicates a part. The same `seed` gives
/// the same output.
fn mutate(input: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            bytes.push(rng.random());
        }
        let at = rng.random_range(0..bytes.len());
        let end = rng.random_range(at..bytes.len().min(at + 64) + 1);
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte = rng.random()),
        }
    }
    bytes
}

#[test]
fn each_corpus_belongs_to_a_target_and_its_grown_entries_are_short() {
    for folder in fs::read_dir(fuzz_folder().join("corpus")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        let target = targets().find(|target| target.name == name).unwrap_or_else(|| panic!("no target is {name}"));
        let grown: Vec<_> = corpus(target).into_iter().filter(|(file, _)| is_grown(file)).collect();
        assert!(grown.len() <= 64, "{name}");
        assert!(grown.iter().all(|(_, input)| input.len() <= 4096), "{name}");
    }
}

#[test]
fn the_documentation_lists_every_target() {
    let document = fs::read_to_string(fuzz_folder().join("../docs/fuzzing.md")).unwrap();
    for FuzzTarget { name, .. } in targets() {
        assert!(document.contains(&format!("\n| `{name}` | ")), "docs/fuzzing.md lacks a row of {name}");
    }
}

#[test]
#[ignore = "writes the seeds in fuzz/corpus"]
fn write_seeds() {
    for FuzzTarget { name, seeds, .. } in targets() {
        let folder = fuzz_folder().join("corpus").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (index, seed) in seeds().iter().enumerate() {
            fs::write(folder.join(format!("seed-{index:02}")), seed).unwrap();
        }
    }
}
