//! Replays all corpora, and mutations of them, on the stable compiler.

use std::{fs, path::PathBuf};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::{FuzzTarget, TARGETS};

/// Number of mutations of each input in an ordinary test run.
const MUTATIONS: u64 = 200;

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
        for (file, input) in corpus(target) {
            for seed in 0..MUTATIONS {
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
fn each_target_has_a_program_and_a_manifest_entry() {
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for target in targets() {
        let file = format!("fuzz_targets/{}.rs", target.name);
        assert!(manifest.contains(&format!("path = \"{file}\"")), "fuzz/Cargo.toml lacks {}", target.name);
        let program = fs::read_to_string(fuzz_folder().join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(program.contains(&format!("run(\"{}\", input)", target.name)), "{file} runs another target");
    }
}

#[test]
#[ignore = "writes fuzz/corpus, and the program and manifest entry of each target"]
fn write_seeds() {
    let mut manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).unwrap();
    for FuzzTarget { name, seeds, .. } in targets() {
        let folder = fuzz_folder().join("corpus").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (index, seed) in seeds().iter().enumerate() {
            fs::write(folder.join(format!("seed-{index:02}")), seed).unwrap();
        }
        let file = format!("fuzz_targets/{name}.rs");
        let program =
            format!("#![no_main]\nlibfuzzer_sys::fuzz_target!(|input: &[u8]| umbel::fuzz::run(\"{name}\", input));\n");
        fs::write(fuzz_folder().join(&file), program).unwrap();
        let entry =
            format!("\n[[bin]]\nname = \"{name}\"\npath = \"{file}\"\ntest = false\ndoc = false\nbench = false\n");
        if !manifest.contains(&entry) {
            manifest.push_str(&entry);
        }
    }
    fs::write(fuzz_folder().join("Cargo.toml"), manifest).unwrap();
}
