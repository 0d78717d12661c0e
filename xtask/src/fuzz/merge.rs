//! Merges a target's grown corpus into `fuzz/corpus`, within caps, so that the repository and the test of all corpora stay
//! small.
//!
//! libFuzzer's merge lists the features of each input. The entries are chosen here, because libFuzzer's own choice has
//! no cap: seeds and fixed findings stay, and the inputs that add the most features follow.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{corpus, libfuzzer, target::Target};
use crate::run::Failure;

/// Maximum entries of a target in `fuzz/corpus` that a merge has added.
const MAX_ENTRIES: usize = 64;
/// Maximum length of such an entry.
const MAX_ENTRY_LEN: u64 = 4 << 10;
/// Maximum length of all such entries of a target.
const MAX_TOTAL_LEN: u64 = 64 << 10;

/// An input, and the features that it has.
struct Input {
    path: PathBuf,
    length: u64,
    features: Vec<u32>,
}

/// Replaces the grown entries of the target in `fuzz/corpus` by the best ones of both corpora. Returns the numbers of
/// entries before and after; `None` if there is nothing to merge.
pub(super) fn merge(program: &Path, target: &Target) -> Result<Option<(usize, usize)>, Failure> {
    let failed = |error: io::Error| Failure::new(format!("can't merge the corpus of {}: {error}", target.name));
    let (committed, grown) = (target.committed(), target.grown());
    if corpus::names(&grown)?.is_empty() {
        return Ok(None);
    }
    let inputs = features(program, target)?;
    let name = |input: &Input| input.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (candidates, kept): (Vec<_>, Vec<_>) = inputs.into_iter().partition(|input| corpus::is_grown(&name(input)));
    let chosen = choose(&kept, candidates);
    let before = corpus::names(&committed)?;
    for input in &chosen {
        let entry = committed.join(name(input));
        if entry != input.path {
            fs::copy(&input.path, entry).map_err(failed)?;
        }
    }
    let chosen: HashSet<String> = chosen.iter().map(name).collect();
    for old in before.iter().filter(|old| corpus::is_grown(old) && !chosen.contains(*old)) {
        fs::remove_file(committed.join(old)).map_err(failed)?;
    }
    Ok(Some((before.len(), corpus::names(&committed)?.len())))
}

/// The features of all inputs of both corpora, from libFuzzer's record of a merge.
fn features(program: &Path, target: &Target) -> Result<Vec<Input>, Failure> {
    let failed = |error: io::Error| Failure::new(format!("can't merge the corpus of {}: {error}", target.name));
    let (record, output) = (target.scratch("merge-record"), target.scratch("merged"));
    let _ = fs::remove_file(&record);
    let _ = fs::remove_dir_all(&output);
    fs::create_dir_all(&output).map_err(failed)?;
    // Unlike a plain merge, this one records all features of each input.
    let status = libfuzzer(program, target)
        .args(["-set_cover_merge=1", "-max_len=1048576"])
        .arg(format!("-merge_control_file={}", record.display()))
        .args([&output, &target.committed(), &target.grown()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(failed)?;
    if !status.success() {
        return Err(Failure::new(format!("the merge of {} ended with {status}", target.name)));
    }
    let inputs = read(BufReader::new(File::open(&record).map_err(failed)?)).map_err(failed)?;
    let _ = fs::remove_file(&record);
    let _ = fs::remove_dir_all(&output);
    Ok(inputs)
}

/// Reads libFuzzer's record: the number of inputs, a number without use here, the paths, and lines such as `FT 0 7 9`:
/// input 0 has the features 7 and 9.
fn read(record: impl io::BufRead) -> io::Result<Vec<Input>> {
    let mut lines = record.lines();
    let count = lines.next().transpose()?.and_then(|line| line.parse().ok()).unwrap_or(0_usize);
    lines.next().transpose()?;
    let mut inputs = Vec::new();
    for path in lines.by_ref().take(count) {
        let path = PathBuf::from(path?);
        inputs.push(Input { length: corpus::length(&path), path, features: Vec::new() });
    }
    for line in lines {
        let line = line?;
        let Some(rest) = line.strip_prefix("FT ") else { continue };
        let mut numbers = rest.split_whitespace();
        let input = numbers.next().and_then(|index| inputs.get_mut(index.parse::<usize>().ok()?));
        if let Some(input) = input {
            input.features = numbers.filter_map(|feature| feature.parse().ok()).collect();
        }
    }
    Ok(inputs)
}

/// Of the candidates, repeatedly the one that adds the most features to `kept` and the earlier ones, within the caps.
fn choose(kept: &[Input], mut candidates: Vec<Input>) -> Vec<Input> {
    let mut covered: HashSet<u32> = kept.iter().flat_map(|input| input.features.iter().copied()).collect();
    let (mut chosen, mut total) = (Vec::new(), 0_u64);
    candidates.retain(|input| input.length <= MAX_ENTRY_LEN);
    while chosen.len() < MAX_ENTRIES {
        candidates.retain_mut(|input| {
            input.features.retain(|feature| !covered.contains(feature));
            !input.features.is_empty() && total.saturating_add(input.length) <= MAX_TOTAL_LEN
        });
        let rank = |input: &Input| (input.features.len(), u64::MAX.saturating_sub(input.length));
        let best = candidates.iter().enumerate().max_by_key(|(_, input)| rank(input)).map(|(index, _)| index);
        let Some(best) = best else { break };
        let input = candidates.swap_remove(best);
        total = total.saturating_add(input.length);
        covered.extend(input.features.iter().copied());
        chosen.push(input);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &str, length: u64, features: &[u32]) -> Input {
        Input { path: path.into(), length, features: features.to_vec() }
    }

    fn paths(inputs: &[Input]) -> Vec<&str> {
        inputs.iter().map(|input| input.path.to_str().unwrap()).collect()
    }

    #[test]
    fn the_record_of_a_merge_has_the_features_of_each_input() {
        let record = "2\n0\n/corpus/one\n/corpus/two\nSTARTED 0 3\nFT 0 5 6\nCOV 0 1\nSTARTED 1 4\nFT 1 6 70\nCOV 1\n";
        let inputs = read(record.as_bytes()).unwrap();
        assert_eq!(paths(&inputs), ["/corpus/one", "/corpus/two"]);
        assert_eq!(inputs.iter().map(|input| input.features.clone()).collect::<Vec<_>>(), [vec![5, 6], vec![6, 70]]);
    }

    #[test]
    fn the_inputs_with_the_most_further_features_are_chosen_and_the_smaller_of_equals() {
        let kept = [input("seed", 9, &[1, 2])];
        let candidates = vec![
            input("known", 1, &[1, 2]),
            input("large", 9, &[3, 4]),
            input("small", 5, &[3, 4]),
            input("most", 20, &[1, 5, 6, 7]),
            input("too long", MAX_ENTRY_LEN + 1, &[80, 81, 82, 83, 84]),
        ];
        assert_eq!(paths(&choose(&kept, candidates)), ["most", "small"]);
    }

    #[test]
    fn the_number_and_the_length_of_chosen_inputs_are_capped() {
        let many: Vec<_> = (0..100).map(|number| input("many", 1, &[number])).collect();
        assert_eq!(choose(&[], many).len(), MAX_ENTRIES);
        let long: Vec<_> = (0..100).map(|number| input("long", MAX_ENTRY_LEN, &[number])).collect();
        assert_eq!(choose(&[], long).len(), 16);
    }
}
