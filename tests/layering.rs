//! Checks the dependencies between modules: reads the paths in `src` and fails on one that violates the layers.
//!
//! A part is a module at the crate's root. It may use parts of its layer and of lower layers; within a layer,
//! dependencies must form no cycle. The protocol core may use only crates and standard library modules without
//! ambient state. Code under `#[cfg(test)]` is exempt.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Expr, ExprAsync, ExprAwait, Item, ItemMacro, ItemMod, ItemStatic, ItemUse, Macro, Meta, Signature,
    UseTree,
    visit::{self, Visit},
};

/// The layers from the lowest up, with their parts.
const LAYERS: &[&[&str]] = &[
    &["base"],
    &["wire", "crypto"],
    &["handshake", "onion", "stream", "flow"],
    &["circuit", "relay", "channel", "path", "directory", "signal", "exit", "delegated", "client"],
    &["transport", "engine", "io", "sim"],
    &["node", "browser", "https"],
    // The library's root and the program.
    &["lib", "main"],
];

/// The layers of the protocol core: no socket, thread, lock, file, clock or ambient randomness, no `async`.
const CORE: usize = 4;

/// Parts of the standard library that the core must not use.
const AMBIENT: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::path",
    "std::process",
    "std::sync::Condvar",
    "std::sync::LazyLock",
    "std::sync::Mutex",
    "std::sync::OnceLock",
    "std::sync::RwLock",
    "std::sync::atomic",
    "std::sync::mpsc",
    "std::thread",
    "std::thread_local",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// Primitives for which a platform has a faster implementation than the portable crate, and the module that may use
/// it. The module's tests or the browser tests check that results are equal.
const PLATFORM_PRIMITIVES: &[(&str, &str)] = &[("crypto", "aws_lc_rs::aead::"), ("delegated", "web_sys::Url")];

/// The crates that the core may use. All others in `Cargo.toml` are for the layers above.
const CORE_CRATES: &[&str] = &[
    "alloc",
    "bytes",
    "chacha20poly1305",
    "core",
    "data_encoding",
    "ed25519_dalek",
    "hkdf",
    "prost",
    "rand",
    "sha2",
    "std",
    "subtle",
    "thiserror",
    "tracing",
    "url",
    "x25519_dalek",
    "zeroize",
];

fn layer(part: &str) -> Option<usize> {
    LAYERS.iter().position(|parts| parts.contains(&part))
}

/// All paths in one file, in full, with `crate` as the first segment for this crate.
struct Paths<'a> {
    module: Vec<String>,
    crates: &'a BTreeSet<String>,
    found: BTreeSet<String>,
    forbidden: BTreeSet<&'static str>,
}

impl Paths<'_> {
    fn name(&mut self, segments: &[String]) {
        let mut at = self.module.clone();
        let rest = match segments.first().map(String::as_str) {
            Some("crate") => {
                at.clear();
                &segments[1..]
            }
            Some("self") => &segments[1..],
            Some("super") => {
                let up = segments.iter().take_while(|segment| *segment == "super").count();
                assert!(up <= at.len(), "{at:?}: {segments:?} leads out of the crate");
                at.truncate(at.len() - up);
                &segments[up..]
            }
            Some(first) if self.crates.contains(first) && segments.len() > 1 => {
                self.found.insert(segments.join("::"));
                return;
            }
            // A name in scope by a `use`.
            _ => return,
        };
        let full = at.iter().chain(rest).map(String::as_str);
        self.found.insert(["crate"].into_iter().chain(full).collect::<Vec<_>>().join("::"));
    }

    fn tree(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.tree(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.name(&with(name.ident.to_string())),
            UseTree::Rename(name) => self.name(&with(name.ident.to_string())),
            UseTree::Glob(_) => self.name(&with("*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(prefix, tree)),
        }
    }

    /// Macro arguments are tokens, not paths: tokens that form a path count.
    fn tokens(&mut self, tokens: &str) {
        let words: Vec<&str> = tokens.split_whitespace().collect();
        for (index, word) in words.iter().enumerate() {
            let starts = index == 0 || words[index - 1] != "::";
            if starts && words.get(index + 1) == Some(&"::") {
                let path = words[index..].chunks(2).take_while(|pair| pair.get(1) == Some(&"::"));
                let mut path: Vec<String> = path.map(|pair| pair[0].to_owned()).collect();
                path.extend(words.get(index + 2 * path.len()).map(|last| (*last).to_owned()));
                if path[0].chars().all(|letter| letter.is_alphanumeric() || letter == '_') && *word == path[0] {
                    self.name(&path);
                }
            }
        }
    }
}

fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.starts_with("all (test") || condition.starts_with("any (test ,")
        }
        meta => meta.path().is_ident("test"),
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !only_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !only_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.name(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        self.tokens(&item.tokens.to_string());
        visit::visit_macro(self, item);
    }

    fn visit_item_macro(&mut self, item: &'ast ItemMacro) {
        visit::visit_item_macro(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast ItemStatic) {
        self.forbidden.insert("a static, which is a global");
        visit::visit_item_static(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        if signature.asyncness.is_some() {
            self.forbidden.insert("an async function");
        }
        visit::visit_signature(self, signature);
    }

    fn visit_expr(&mut self, expression: &'ast Expr) {
        if matches!(expression, Expr::Async(ExprAsync { .. }) | Expr::Await(ExprAwait { .. })) {
            self.forbidden.insert("async code");
        }
        visit::visit_expr(self, expression);
    }
}

/// One source file: its module and its paths.
struct Source {
    file: PathBuf,
    part: String,
    paths: BTreeSet<String>,
    forbidden: BTreeSet<&'static str>,
}

/// Reads `file`, the module `module`, and the files of the modules it declares, except tests.
fn read(file: &Path, module: &[String], crates: &BTreeSet<String>, found: &mut Vec<Source>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let syntax = syn::parse_file(&text).unwrap();
    let mut paths = Paths { module: module.to_vec(), crates, found: BTreeSet::new(), forbidden: BTreeSet::new() };
    paths.visit_file(&syntax);
    let root = file.file_stem().unwrap().to_string_lossy().into_owned();
    let part = module.first().cloned().unwrap_or(root);
    found.push(Source { file: file.to_owned(), part, paths: paths.found, forbidden: paths.forbidden });
    let folder = if module.is_empty() { file.parent().unwrap().to_owned() } else { file.with_extension("") };
    for item in &syntax.items {
        if let Item::Mod(ItemMod { attrs, ident, content: None, .. }) = item
            && !only_for_tests(attrs)
        {
            let child: Vec<String> = module.iter().cloned().chain([ident.to_string()]).collect();
            read(&folder.join(format!("{ident}.rs")), &child, crates, found);
        }
    }
}

/// The crates in `Cargo.toml`, and those of the standard library.
fn crates() -> BTreeSet<String> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let sections = manifest
        .split("\n[")
        .filter(|section| section.split(']').next().is_some_and(|title| title.ends_with("dependencies")));
    let lines = sections.flat_map(str::lines).filter(|line| !line.starts_with(['#', ' ']));
    let names = lines.filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.trim().replace('-', "_"));
    names.chain(["std", "core", "alloc"].map(str::to_owned)).collect()
}

fn sources() -> Vec<Source> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (crates, mut found) = (crates(), Vec::new());
    for root in ["lib.rs", "main.rs"] {
        read(&folder.join(root), &[], &crates, &mut found);
    }
    found
}

/// The parts that `source` uses. A re-export of the library's root counts as its original part.
fn parts(source: &Source, offered: &BTreeMap<String, String>) -> BTreeSet<String> {
    let ours = source.paths.iter().filter_map(|path| path.strip_prefix("crate::"));
    let first = ours.map(|path| path.split("::").next().unwrap());
    first
        .map(|name| offered.get(name).map_or(name, String::as_str).to_owned())
        .filter(|part| *part != source.part)
        .collect()
}

/// The re-exports of `lib.rs`, each with its part.
fn offered() -> BTreeMap<String, String> {
    fn collect(prefix: &[String], tree: &UseTree, names: &mut BTreeMap<String, String>) {
        let with = |name: String| prefix.iter().cloned().chain([name]).filter(|name| name != "crate" && name != "self");
        match tree {
            UseTree::Path(path) => collect(&with(path.ident.to_string()).collect::<Vec<_>>(), &path.tree, names),
            UseTree::Group(group) => group.items.iter().for_each(|tree| collect(prefix, tree, names)),
            UseTree::Name(name) => drop(names.insert(name.ident.to_string(), prefix[0].clone())),
            UseTree::Rename(name) => drop(names.insert(name.rename.to_string(), prefix[0].clone())),
            UseTree::Glob(_) => {}
        }
    }
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let mut names = BTreeMap::new();
    for item in syn::parse_file(&fs::read_to_string(library).unwrap()).unwrap().items {
        if let Item::Use(item) = item {
            collect(&[], &item.tree, &mut names);
        }
    }
    names
}

#[test]
fn no_part_knows_of_one_above_it() {
    let offered = offered();
    let mut breaches = Vec::new();
    for source in sources() {
        let file = source.file.display();
        let Some(own) = layer(&source.part) else {
            panic!("{file}: `{}` has no layer; add it to tests/layering.rs", source.part);
        };
        for part in parts(&source, &offered) {
            // The root and the program may use all layers.
            if own + 1 == LAYERS.len() {
                continue;
            }
            match layer(&part) {
                Some(other) if other <= own => {}
                Some(_) => breaches.push(format!("{file}: `{}` names `{part}`, a layer above", source.part)),
                None => breaches.push(format!("{file}: names `crate::{part}`, which is no part")),
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn no_two_parts_lean_on_each_other() {
    let offered = offered();
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources().iter().filter(|source| source.part != "lib" && source.part != "main") {
        names.entry(source.part.clone()).or_default().extend(parts(source, &offered));
    }
    // Repeatedly removes parts without remaining dependencies; a cycle can't be removed.
    loop {
        let free: Vec<String> =
            names.iter().filter(|(_, parts)| parts.is_empty()).map(|(name, _)| name.clone()).collect();
        if free.is_empty() {
            break;
        }
        for name in free {
            names.remove(&name);
            names.values_mut().for_each(|parts| parts.retain(|part| *part != name));
        }
    }
    assert!(names.is_empty(), "these modules form a cycle: {names:#?}");
}

#[test]
fn the_core_is_handed_everything() {
    let crates = crates();
    let mut breaches = Vec::new();
    for source in sources().iter().filter(|source| layer(&source.part).is_some_and(|layer| layer < CORE)) {
        let file = source.file.display();
        for path in &source.paths {
            let first = path.split("::").next().unwrap();
            let ambient = |banned: &&&str| path == **banned || path.starts_with(&format!("{banned}::"));
            if let Some(banned) = AMBIENT.iter().find(ambient) {
                breaches.push(format!("{file}: `{path}`, but the core keeps away from {banned}"));
            }
            let primitive = |(part, prefix): &(&str, &str)| source.part == *part && path.starts_with(prefix);
            if crates.contains(first) && !CORE_CRATES.contains(&first) && !PLATFORM_PRIMITIVES.iter().any(primitive) {
                breaches.push(format!("{file}: `{path}`, a crate that is not for the core"));
            }
        }
        breaches.extend(source.forbidden.iter().map(|what| format!("{file}: has {what}")));
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn a_breach_is_found_however_it_is_written() {
    let crates = crates();
    let found = |text: &str| {
        let mut paths = Paths {
            module: ["wire", "cell"].map(str::to_owned).to_vec(),
            crates: &crates,
            found: BTreeSet::new(),
            forbidden: BTreeSet::new(),
        };
        paths.visit_file(&syn::parse_file(text).unwrap());
        paths.found.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(
        found("use crate::{node::{self, Config}, base::*};"),
        ["crate::base::*", "crate::node::Config", "crate::node::self"]
    );
    assert_eq!(found("use super::super::io::store;"), ["crate::io::store"]);
    assert_eq!(found("fn f() -> crate::relay::Relay { super::x() }"), ["crate::relay::Relay", "crate::wire::x"]);
    assert_eq!(found("mod inner { use super::super::Cell; }"), ["crate::wire::Cell"]);
    assert_eq!(found("fn f() { println!(\"{}\", crate::node::NAME) }"), ["crate::node::NAME"]);
    assert_eq!(found("fn f() { let _ = std::time::Instant::now(); }"), ["std::time::Instant::now"]);
    assert_eq!(found("#[cfg(test)] mod tests { use crate::node::Config; }"), [""; 0]);
}
