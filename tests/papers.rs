//! Checks the documents against the code: the identifiers and files that they name must exist.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const PAPERS: &[&str] = &["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "threat-model.md", "docs", "proto", "deploy"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files with the extension `kind` in `path`, or `path` itself if it is a file.
fn files(path: &Path, kind: &str) -> Vec<PathBuf> {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path(), kind)).collect();
    }
    if path.extension().is_some_and(|ending| ending == kind) { vec![path.to_owned()] } else { Vec::new() }
}

fn papers() -> Vec<(PathBuf, String)> {
    let files = PAPERS.iter().flat_map(|paper| files(&root().join(paper), "md"));
    files.map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect()
}

/// The text between pairs of back-quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// All Rust sources, joined.
fn sources() -> String {
    let sources = ["src", "tests"].iter().flat_map(|folder| files(&root().join(folder), "rs"));
    sources.map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// Fails unless each of `names` is a function in the sources. `paper` names at least `least`.
fn assert_exist<'a>(paper: &str, names: impl Iterator<Item = &'a str>, least: usize) {
    let text = sources();
    let tests: BTreeSet<&str> =
        text.split("fn ").filter_map(|rest| rest.split_once('(').map(|(name, _)| name)).collect();
    let named: Vec<&str> = names.filter(|name| name.matches('_').count() >= 2).collect();
    assert!(named.len() > least, "{paper} names its tests");
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "{paper} names tests that don't exist: {missing:#?}");
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let model = fs::read_to_string(root().join("threat-model.md")).unwrap();
    assert_exist("threat-model.md", quoted(&model), 50);
}

#[test]
fn every_test_that_the_tables_of_resources_name_exists() {
    let tables = fs::read_to_string(root().join("docs/resources.md")).unwrap();
    // The last column; the others name parameters.
    let columns = tables.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
    assert_exist("docs/resources.md", columns.flat_map(quoted), 50);
}

#[test]
fn every_relative_url_in_the_papers_exists() {
    let mut broken = Vec::new();
    for (file, text) in papers() {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
        for target in targets.filter(|target| !target.contains("://") && !target.starts_with('#')) {
            let path = target.split('#').next().unwrap();
            if !file.parent().unwrap().join(path).exists() {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
