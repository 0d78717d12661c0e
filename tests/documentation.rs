//! Checks the documents against the code: the identifiers and files that they name must exist.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const DOCUMENTS: &[&str] =
    &["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "threat-model.md", "docs", "proto", "deploy"];

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

fn documents() -> Vec<(PathBuf, String)> {
    let files = DOCUMENTS.iter().flat_map(|path| files(&root().join(path), "md"));
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

/// Fails unless each of `names` is a function in the sources. `document` names at least `least`.
fn assert_exist<'a>(document: &str, names: impl Iterator<Item = &'a str>, least: usize) {
    let text = sources();
    let tests: BTreeSet<&str> =
        text.split("fn ").filter_map(|rest| rest.split_once('(').map(|(name, _)| name)).collect();
    let named: Vec<&str> = names.filter(|name| name.matches('_').count() >= 2).collect();
    assert!(named.len() > least, "{document} names its tests");
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "{document} names tests that don't exist: {missing:#?}");
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
fn every_relative_url_in_the_documentation_exists() {
    let mut broken = Vec::new();
    for (file, text) in documents() {
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

/// The files of the modules in `list`: `a::b` is `src/a/b.rs`, and `a::{b, c}` is two files.
fn module_files(list: &str) -> Vec<PathBuf> {
    let module = |path: String| root().join("src").join(path.replace("::", "/")).with_extension("rs");
    let files = quoted(list).flat_map(|path| match path.split_once('{') {
        Some((parent, children)) => {
            children.trim_end_matches('}').split(", ").map(|child| module(format!("{parent}{child}"))).collect()
        }
        None => vec![module(path.to_owned())],
    });
    files.collect()
}

/// Whether `code` names the type of `path` (`Type::function`, `Enum::Variant`, `Type` or `function`) and defines its
/// function.
fn defines(code: &str, path: &str) -> bool {
    let is_type = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
    let (qualifier, name) = path.rsplit_once("::").unwrap_or(("", path));
    let of_type = qualifier.rsplit("::").next().is_none_or(|owner| !is_type(owner) || code.contains(owner));
    let defined = if is_type(name) {
        code.contains(name)
    } else {
        [format!("fn {name}("), format!("fn {name}<")].iter().any(|function| code.contains(function))
    };
    of_type && defined
}

/// The steps of the sections "The way of …": the title, and the list of modules with the text behind it.
fn steps(architecture: &str) -> Vec<(&str, String)> {
    let sections = architecture.split("\n## ").filter(|section| section.starts_with("The way of "));
    let mut steps: Vec<(&str, String)> = Vec::new();
    for line in sections.flat_map(str::lines) {
        if let Some((title, text)) = line.split_once("** (") {
            steps.push((title, text.to_owned()));
        } else if let Some((_, text)) = steps.last_mut().filter(|_| line.starts_with("   ")) {
            text.push(' ');
            text.push_str(line.trim_start());
        }
    }
    steps
}

#[test]
fn every_name_in_the_way_of_a_cell_and_of_a_byte_is_in_the_modules_of_its_step() {
    let architecture = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let steps = steps(&architecture);
    assert_eq!(steps.len(), 20, "each step lists its modules");
    let mut missing = Vec::new();
    for (title, step) in &steps {
        let (list, text) = step.split_once(')').unwrap();
        let code: Vec<String> = module_files(list).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let absent = quoted(text).filter(|name| !code.iter().any(|code| defines(code, name)));
        missing.extend(absent.map(|name| format!("{title}: {name}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
