//! Checks the dependencies between modules: reads the paths in `src` and fails if a dependency violates the ranks.
//!
//! A part is a module at the crate's root. A part may use the parts of lower ranks, by the table in
//! `docs/architecture.md`. Within any module, the dependencies between its submodules must form no cycle. The protocol
//! core may use only crates and standard library modules without ambient state. Code under `#[cfg(test)]` is exempt.
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

/// The lowest layer above the protocol core. The core has no socket, thread, lock, file, clock or ambient randomness,
/// and no `async`.
const ABOVE_THE_CORE: &str = "drivers";

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

/// Implementations by a platform that a module of the core may use instead of the portable crate: the module, and the
/// prefix of the paths. The module's tests or the browser tests check that both give equal results.
const PLATFORM_PRIMITIVES: &[(&str, &str)] = &[("crypto", "aws_lc_rs::aead::"), ("delegated", "web_sys::Url")];

/// A forbidden item: a thread-local.
const THREAD_LOCAL: &str = "a thread-local, which is a global";

/// The modules of the core with a thread-local that changes no result.
const THREAD_LOCALS: &[&str] = &["base::slots"];

/// The crates that the core may use. All other crates in `Cargo.toml` are for the layers above the core.
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
    "slab",
    "std",
    "subtle",
    "thiserror",
    "tracing",
    "url",
    "x25519_dalek",
    "zeroize",
];

/// One row of the table of ranks.
struct Rank {
    layer: String,
    parts: Vec<String>,
}

/// The table of ranks in `docs/architecture.md`, the lowest rank first.
struct Ranks(Vec<Rank>);

impl Ranks {
    fn read() -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
        let text = fs::read_to_string(file).unwrap();
        let section = text.split("\n## ").find(|section| section.starts_with("Layers\n")).unwrap();
        let mut ranks = Vec::new();
        for row in section.lines() {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, number, layer, parts, ..] = cells[..] else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            assert_eq!(number, ranks.len() + 1, "the ranks are numbered in order from 1: {row}");
            let parts = parts.split(',').map(|part| part.trim().trim_matches('`').to_owned()).collect();
            ranks.push(Rank { layer: layer.to_owned(), parts });
        }
        assert!(ranks.iter().any(|rank| rank.layer == ABOVE_THE_CORE), "docs/architecture.md has no table of ranks");
        Self(ranks)
    }

    fn rank_of(&self, part: &str) -> Option<usize> {
        self.0.iter().position(|rank| rank.parts.iter().any(|one| one == part))
    }

    /// The parts of the protocol core.
    fn core(&self) -> BTreeSet<&str> {
        let core = self.0.iter().take_while(|rank| rank.layer != ABOVE_THE_CORE);
        core.flat_map(|rank| &rank.parts).map(String::as_str).collect()
    }
}

/// The full paths in one file. Paths in this crate begin with `crate`.
struct Paths<'a> {
    module: Vec<String>,
    /// The modules that the file declares.
    children: BTreeSet<String>,
    crates: &'a BTreeSet<String>,
    found: BTreeSet<String>,
    /// The names that `use` imports into the module, each with its path within the crate.
    imports: BTreeMap<String, Vec<String>>,
    forbidden: BTreeSet<&'static str>,
}

impl Paths<'_> {
    /// The path within the crate; `None` for other crates and for imported names.
    fn local(&self, segments: &[String]) -> Option<Vec<String>> {
        let mut at = self.module.clone();
        let rest = match segments.first()?.as_str() {
            "crate" => {
                at.clear();
                &segments[1..]
            }
            "self" => &segments[1..],
            "super" => {
                let levels = segments.iter().take_while(|segment| *segment == "super").count();
                assert!(levels <= at.len(), "{at:?}: {segments:?} leads out of the crate");
                at.truncate(at.len() - levels);
                &segments[levels..]
            }
            first if self.children.contains(first) => segments,
            _ => return None,
        };
        Some(at.into_iter().chain(rest.iter().cloned()).collect())
    }

    /// Adds the path if it is in this crate or in another crate.
    fn add(&mut self, segments: &[String]) {
        if let Some(path) = self.local(segments) {
            let full = ["crate"].into_iter().chain(path.iter().map(String::as_str));
            self.found.insert(full.collect::<Vec<_>>().join("::"));
        } else if segments.len() > 1 && self.crates.contains(&segments[0]) {
            self.found.insert(segments.join("::"));
        }
    }

    /// Handles the path of a `use`, which imports `name`.
    fn import(&mut self, segments: &[String], name: &str) {
        self.add(segments);
        let (segments, name) = match segments {
            [path @ .., last, own] if own == "self" && name == "self" => (&segments[..=path.len()], last.as_str()),
            [path @ .., own] if own == "self" => (path, name),
            _ => (segments, name),
        };
        if let Some(path) = self.local(segments) {
            self.imports.insert(name.to_owned(), path);
        }
    }

    /// Handles the part `tree` of a `use`, behind `prefix`.
    fn use_tree(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.use_tree(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.import(&with(name.ident.to_string()), &name.ident.to_string()),
            UseTree::Rename(name) => self.import(&with(name.ident.to_string()), &name.rename.to_string()),
            UseTree::Glob(_) => self.add(&with("*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(prefix, tree)),
        }
    }

    /// Adds the paths in the tokens of macro arguments.
    fn add_tokens(&mut self, tokens: &str) {
        let words: Vec<&str> = tokens.split_whitespace().collect();
        for (index, word) in words.iter().enumerate() {
            let starts = index == 0 || words[index - 1] != "::";
            if starts && words.get(index + 1) == Some(&"::") {
                let path = words[index..].chunks(2).take_while(|pair| pair.get(1) == Some(&"::"));
                let mut path: Vec<String> = path.map(|pair| pair[0].to_owned()).collect();
                path.extend(words.get(index + 2 * path.len()).map(|last| (*last).to_owned()));
                if path[0].chars().all(|letter| letter.is_alphanumeric() || letter == '_') && *word == path[0] {
                    self.add(&path);
                }
            }
        }
    }
}

/// Whether an item with these attributes is compiled only in tests.
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
        self.use_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        if item.path.is_ident("thread_local") {
            self.forbidden.insert(THREAD_LOCAL);
        }
        self.add_tokens(&item.tokens.to_string());
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
    module: Vec<String>,
    part: String,
    paths: BTreeSet<String>,
    imports: BTreeMap<String, Vec<String>>,
    forbidden: BTreeSet<&'static str>,
}

/// Reads `file`, which has the module `module`, and the files of the modules that the file declares, except tests.
fn read(file: &Path, module: &[String], crates: &BTreeSet<String>, found: &mut Vec<Source>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let syntax = syn::parse_file(&text).unwrap();
    let declared = syntax.items.iter().filter_map(|item| match item {
        Item::Mod(ItemMod { attrs, ident, content: None, .. }) if !only_for_tests(attrs) => Some(ident.to_string()),
        _ => None,
    });
    let children: BTreeSet<String> = declared.collect();
    let mut paths = Paths {
        module: module.to_vec(),
        children,
        crates,
        found: BTreeSet::new(),
        imports: BTreeMap::new(),
        forbidden: BTreeSet::new(),
    };
    paths.visit_file(&syntax);
    let root = file.file_stem().unwrap().to_string_lossy().into_owned();
    found.push(Source {
        file: file.to_owned(),
        module: module.to_vec(),
        part: module.first().cloned().unwrap_or(root),
        paths: paths.found,
        imports: paths.imports,
        forbidden: paths.forbidden,
    });
    let folder = if module.is_empty() { file.parent().unwrap().to_owned() } else { file.with_extension("") };
    for child in paths.children {
        let file = folder.join(format!("{child}.rs"));
        read(&file, &module.iter().cloned().chain([child]).collect::<Vec<_>>(), crates, found);
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

/// The modules of the library, by their paths.
fn modules(sources: &[Source]) -> BTreeMap<&[String], &Source> {
    let library = sources.iter().filter(|source| source.part != "main");
    library.map(|source| (source.module.as_slice(), source)).collect()
}

/// The module that defines the item at `path`. Re-exports are followed.
fn definition(path: &str, modules: &BTreeMap<&[String], &Source>) -> Option<Vec<String>> {
    let mut path: Vec<String> = path.strip_prefix("crate::")?.split("::").map(str::to_owned).collect();
    // The bound exceeds any chain of re-exports, and ends cycles of imports.
    for _ in 0..16 {
        let depth = (0..=path.len()).rev().find(|depth| modules.contains_key(&path[..*depth]))?;
        let Some(name) = path.get(depth) else { return Some(path) };
        match modules[&path[..depth]].imports.get(name) {
            Some(origin) => path = origin.iter().chain(&path[depth + 1..]).cloned().collect(),
            None => return Some(path[..depth].to_vec()),
        }
    }
    None
}

/// Repeatedly removes modules without remaining dependencies. Returns the other modules: cycles, and modules that use
/// cycles.
fn find_cycles(mut uses: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let all: BTreeSet<String> = uses.keys().cloned().collect();
        uses.values_mut().for_each(|used| used.retain(|module| all.contains(module)));
        let before = uses.len();
        uses.retain(|_, used| !used.is_empty());
        if uses.len() == before {
            return uses;
        }
    }
}

#[test]
fn a_part_uses_only_parts_of_lower_ranks() {
    let (ranks, sources) = (Ranks::read(), sources());
    let modules = modules(&sources);
    let mut violations = Vec::new();
    // The root and the program may use all parts.
    for source in sources.iter().filter(|source| !source.module.is_empty()) {
        let (file, part) = (source.file.display(), &source.part);
        let own = ranks.rank_of(part);
        let own = own.unwrap_or_else(|| panic!("{file}: `{part}` has no rank; give it one in docs/architecture.md"));
        let used = source.paths.iter().filter_map(|path| definition(path, &modules));
        let used: BTreeSet<String> = used.filter_map(|module| module.first().cloned()).collect();
        for other in used.iter().filter(|other| *other != part) {
            if ranks.rank_of(other).is_none_or(|other| other >= own) {
                violations.push(format!("{file}: `{part}` uses `{other}`, whose rank is not lower"));
            }
        }
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_ranked_part_exists() {
    let sources = sources();
    let parts: BTreeSet<&String> = sources.iter().map(|source| &source.part).collect();
    for rank in Ranks::read().0 {
        let missing: Vec<_> = rank.parts.iter().filter(|part| !parts.contains(part)).collect();
        assert!(missing.is_empty(), "docs/architecture.md ranks {missing:?}, which are no modules");
    }
}

#[test]
fn submodules_form_no_cycle() {
    let sources = sources();
    let modules = modules(&sources);
    // For each module, the dependencies between its submodules. A submodule includes all modules below it.
    let mut uses: BTreeMap<&[String], BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in modules.values() {
        for used in source.paths.iter().filter_map(|path| definition(path, &modules)) {
            let shared = source.module.iter().zip(&used).take_while(|(one, other)| one == other).count();
            // A module and its submodules may use each other.
            if let (Some(own), Some(other)) = (source.module.get(shared), used.get(shared)) {
                let of_parent = uses.entry(&source.module[..shared]).or_default();
                of_parent.entry(own.clone()).or_default().insert(other.clone());
            }
        }
    }
    assert!(uses.len() > 20, "too few dependencies are found");
    let cycles = uses.into_iter().map(|(parent, uses)| (parent.join("::"), find_cycles(uses)));
    let cycles: Vec<_> = cycles.filter(|(_, cycle)| !cycle.is_empty()).collect();
    assert!(cycles.is_empty(), "these submodules form a cycle, or use a cycle: {cycles:#?}");
}

#[test]
fn the_core_uses_no_ambient_state_and_only_listed_crates() {
    let (crates, ranks) = (crates(), Ranks::read());
    let core = ranks.core();
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| core.contains(source.part.as_str())) {
        let file = source.file.display();
        for path in &source.paths {
            let first = path.split("::").next().unwrap();
            let ambient = |banned: &&&str| path == **banned || path.starts_with(&format!("{banned}::"));
            if let Some(banned) = AMBIENT.iter().find(ambient) {
                violations.push(format!("{file}: `{path}`, but the core must not use {banned}"));
            }
            let primitive = |(part, prefix): &(&str, &str)| source.part == *part && path.starts_with(prefix);
            if crates.contains(first) && !CORE_CRATES.contains(&first) && !PLATFORM_PRIMITIVES.iter().any(primitive) {
                violations.push(format!("{file}: `{path}`, a crate that is not for the core"));
            }
        }
        let module = source.module.join("::");
        let exempt = |what: &str| what == THREAD_LOCAL && THREAD_LOCALS.contains(&module.as_str());
        let forbidden = source.forbidden.iter().filter(|what| !exempt(what));
        violations.extend(forbidden.map(|what| format!("{file}: has {what}")));
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn paths_are_found_in_each_syntax() {
    let crates = crates();
    let found = |text: &str| {
        let mut paths = Paths {
            module: ["wire", "cell"].map(str::to_owned).to_vec(),
            children: BTreeSet::new(),
            crates: &crates,
            found: BTreeSet::new(),
            imports: BTreeMap::new(),
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

#[test]
fn cycles_through_re_exports_are_found() {
    let module = |path: &str| -> Vec<String> { path.split("::").map(str::to_owned).collect() };
    let source = |path: &str, imports: &[(&str, &str)]| Source {
        file: PathBuf::new(),
        module: module(path),
        part: module(path)[0].clone(),
        paths: BTreeSet::new(),
        imports: imports.iter().map(|(name, path)| ((*name).to_owned(), module(path))).collect(),
        forbidden: BTreeSet::new(),
    };
    let sources = [source("io", &[("Stream", "io::stream::Stream")]), source("io::stream", &[])];
    let modules = modules(&sources);
    let found = |path: &str| definition(path, &modules).map(|module| module.join("::"));
    assert_eq!(found("crate::io::Stream").as_deref(), Some("io::stream"));
    assert_eq!(found("crate::io::stream::Stream::new").as_deref(), Some("io::stream"));
    assert_eq!(found("crate::io::Other").as_deref(), Some("io"));
    assert_eq!(found("std::fs"), None);

    let uses = |pairs: &[(&str, &str)]| {
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (one, other) in pairs {
            uses.entry((*one).to_owned()).or_default().insert((*other).to_owned());
        }
        find_cycles(uses)
    };
    assert_eq!(uses(&[("a", "b"), ("b", "c"), ("a", "c")]).len(), 0);
    assert_eq!(uses(&[("a", "b"), ("b", "c"), ("c", "b")]).len(), 3);
}
