//! Checks the documents against the code: the identifiers and files that they name must exist.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use syn::{Ident, ImplItem, Item, TraitItem, Type};

const DOCUMENTS: &[&str] =
    &["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "threat-model.md", "docs", "proto", "deploy"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files with this extension in the folder `path`, or `path` itself if it is a file.
fn files(path: &Path, extension: &str) -> Vec<PathBuf> {
    if path.is_dir() {
        return fs::read_dir(path).unwrap().flat_map(|entry| files(&entry.unwrap().path(), extension)).collect();
    }
    if path.extension().is_some_and(|own| own == extension) { vec![path.to_owned()] } else { Vec::new() }
}

/// The Markdown files of the documentation, with their texts.
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

/// Fails unless each of `names` is a function in the sources. Ignores names with fewer than two underscores. `document`
/// must have more than `minimum` names.
fn assert_exist<'a>(document: &str, names: impl Iterator<Item = &'a str>, minimum: usize) {
    let text = sources();
    let tests: BTreeSet<&str> =
        text.split("fn ").filter_map(|rest| rest.split_once('(').map(|(name, _)| name)).collect();
    let named: Vec<&str> = names.filter(|name| name.matches('_').count() >= 2).collect();
    assert!(named.len() > minimum, "{document} names too few tests");
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
    // Only the last column names tests. Other columns name parameters.
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

/// The paths of the modules in `list`: `a::{b, c}` is `a::b` and `a::c`.
fn module_paths(list: &str) -> Vec<String> {
    let paths = quoted(list).flat_map(|path| match path.split_once('{') {
        Some((parent, children)) => {
            children.trim_end_matches('}').split(", ").map(|child| format!("{parent}{child}")).collect()
        }
        None => vec![path.to_owned()],
    });
    paths.collect()
}

/// Names, each with its type if it is a function, variant or field of one.
type Names = BTreeSet<(Option<String>, String)>;

/// A module, and the names that it defines.
struct Module {
    path: String,
    names: Names,
}

impl Module {
    /// The module `path`: `a::b` is `src/a/b.rs`.
    fn read(path: String) -> Self {
        let file = root().join("src").join(path.replace("::", "/")).with_extension("rs");
        let code = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        let mut names = Names::new();
        for item in code.items {
            match item {
                Item::Const(item) => add(&mut names, None, [&item.ident]),
                Item::Fn(item) => add(&mut names, None, [&item.sig.ident]),
                Item::Type(item) => add(&mut names, None, [&item.ident]),
                Item::Struct(item) => {
                    add(&mut names, None, [&item.ident]);
                    add(&mut names, Some(&item.ident), item.fields.iter().filter_map(|field| field.ident.as_ref()));
                }
                Item::Enum(item) => {
                    add(&mut names, None, [&item.ident]);
                    add(&mut names, Some(&item.ident), item.variants.iter().map(|variant| &variant.ident));
                }
                Item::Trait(item) => {
                    add(&mut names, None, [&item.ident]);
                    let functions = item.items.iter().filter_map(|item| match item {
                        TraitItem::Fn(function) => Some(&function.sig.ident),
                        _ => None,
                    });
                    add(&mut names, Some(&item.ident), functions);
                }
                Item::Impl(item) => {
                    let Type::Path(of) = &*item.self_ty else { continue };
                    let functions = item.items.iter().filter_map(|item| match item {
                        ImplItem::Fn(function) => Some(&function.sig.ident),
                        _ => None,
                    });
                    add(&mut names, of.path.segments.last().map(|segment| &segment.ident), functions);
                }
                _ => {}
            }
        }
        Self { path, names }
    }

    /// Whether this module defines `path`: `Type`, `function`, `CONSTANT`, or `Type::name` for a function, variant or
    /// field. A path can begin with this module, or with its parent, which may re-export the name.
    fn defines(&self, path: &str) -> bool {
        let is_type = |name: &str| name.starts_with(|first: char| first.is_ascii_uppercase());
        let parts: Vec<&str> = path.split("::").collect();
        let (module, owner, name) = match parts.as_slice() {
            [module @ .., owner, name] if is_type(owner) => (module, Some((*owner).to_owned()), *name),
            [module @ .., name] => (module, None, *name),
            [] => return false,
        };
        let module = module.join("::");
        let is_parent = self.path.rsplit_once("::").is_some_and(|(parent, _)| parent == module);
        (module.is_empty() || module == self.path || is_parent) && self.names.contains(&(owner, name.to_owned()))
    }
}

fn add<'a>(names: &mut Names, owner: Option<&Ident>, added: impl IntoIterator<Item = &'a Ident>) {
    names.extend(added.into_iter().map(|name| (owner.map(Ident::to_string), name.to_string())));
}

/// The steps of the sections "The way of …": the title, and the list of modules followed by the text.
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
    let mut wrong = Vec::new();
    for (title, step) in &steps {
        let (list, text) = step.split_once(')').unwrap();
        let modules: Vec<Module> = module_paths(list).into_iter().map(Module::read).collect();
        let missing = quoted(text).filter(|name| !modules.iter().any(|module| module.defines(name)));
        wrong.extend(missing.map(|name| format!("{title}: no listed module defines {name}")));
        let unused = modules.iter().filter(|module| !quoted(text).any(|name| module.defines(name)));
        wrong.extend(unused.map(|module| format!("{title}: the text names nothing of {}", module.path)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_module_defines_only_its_own_names() {
    let defines = |module: &str, path: &str| Module::read(module.to_owned()).defines(path);
    for (module, path) in [
        ("stream", "Streams"),
        ("stream", "Streams::open"),
        ("stream::send", "Streams::poll_message"),
        ("channel", "QUEUE_LOW"),
        ("channel", "ChannelParameters::circuit_queue"),
        ("transport", "Driven::deliver"),
        ("base::link", "LinkEvent::Room"),
        ("io::connect", "io::connect::connect"),
        ("io::stream::splice", "io::stream::splice"),
    ] {
        assert!(defines(module, path), "{module} defines {path}");
    }
    // `circuit` uses `Streams` and defines `Origin::open`.
    for (module, path) in [
        ("circuit", "Streams"),
        ("circuit", "Streams::open"),
        ("circuit", "open"),
        ("stream", "Streams::poll_message"),
        ("path::choose", "io::choose"),
    ] {
        assert!(!defines(module, path), "{module} does not define {path}");
    }
}
