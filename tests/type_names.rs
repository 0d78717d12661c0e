//! Checks that the name of a type that is visible outside its module is unique in `src`.
//!
//! Exempt are inline modules under `#[cfg(test)]`, files and folders named `tests`, and types inside functions. Traits
//! count as types.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, ForeignItem, Ident, Item, Meta, Visibility,
    visit::{self, Visit},
};

/// The definitions of each name: the module, and whether the type is visible outside the module.
type Definitions = BTreeMap<String, Vec<(Vec<String>, bool)>>;

struct Types<'a> {
    module: Vec<String>,
    found: &'a mut Definitions,
}

impl Types<'_> {
    fn add(&mut self, name: &Ident, visibility: &Visibility) {
        let visible = !matches!(visibility, Visibility::Inherited);
        self.found.entry(name.to_string()).or_default().push((self.module.clone(), visible));
    }
}

/// Whether an item with these attributes is compiled only in tests.
fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.starts_with("all (test")
        }
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Types<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Enum(item) => self.add(&item.ident, &item.vis),
            Item::Struct(item) => self.add(&item.ident, &item.vis),
            Item::Trait(item) => self.add(&item.ident, &item.vis),
            Item::Type(item) => self.add(&item.ident, &item.vis),
            Item::Mod(module) if !only_for_tests(&module.attrs) => {
                self.module.push(module.ident.to_string());
                visit::visit_item_mod(self, module);
                self.module.pop();
            }
            Item::ForeignMod(_) => visit::visit_item(self, item),
            _ => {}
        }
    }

    fn visit_foreign_item(&mut self, item: &'ast ForeignItem) {
        if let ForeignItem::Type(item) = item {
            self.add(&item.ident, &item.vis);
        }
    }
}

/// Adds the types of the files in `folder`, the folder of the module `module`.
fn read(folder: &Path, module: &[String], found: &mut Definitions) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "tests" {
            continue;
        }
        let module: Vec<String> = module.iter().cloned().chain([name]).collect();
        if path.is_dir() {
            read(&path, &module, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
            Types { module, found }.visit_file(&file);
        }
    }
}

/// Whether the paths of two modules differ in one component, and that component is `native` in one path. Such modules
/// implement one interface for two platforms.
fn are_alternatives(one: &[String], other: &[String]) -> bool {
    let differing: Vec<_> = one.iter().zip(other).filter(|(one, other)| one != other).collect();
    one.len() == other.len() && matches!(differing[..], [(one, other)] if one == "native" || other == "native")
}

/// The names with more than one definition, of which at least one is visible outside its module.
fn repeated(found: Definitions) -> Vec<String> {
    let repeated = found.into_iter().filter(|(_, definitions)| match &definitions[..] {
        [(one, _), (other, _)] if are_alternatives(one, other) => false,
        definitions => definitions.len() > 1 && definitions.iter().any(|(_, visible)| *visible),
    });
    let line = |(name, definitions): (String, Vec<(Vec<String>, bool)>)| {
        let modules: Vec<String> = definitions.iter().map(|(module, _)| module.join("::")).collect();
        format!("{name}: {}", modules.join(", "))
    };
    repeated.map(line).collect()
}

#[test]
fn a_type_visible_outside_its_module_has_a_name_of_its_own() {
    let mut found = Definitions::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut found);
    assert!(found.len() > 500, "too few types are found");
    let repeated = repeated(found);
    assert!(repeated.is_empty(), "these types share a name; give all but one another name:\n{}", repeated.join("\n"));
}

#[test]
fn only_shared_names_of_visible_types_are_found() {
    let found = |modules: &[(&str, &str)]| {
        let mut found = Definitions::new();
        for (module, text) in modules {
            let module = module.split("::").map(str::to_owned).collect();
            Types { module, found: &mut found }.visit_file(&syn::parse_file(text).unwrap());
        }
        repeated(found)
    };
    assert_eq!(found(&[("a", "pub struct T;"), ("b", "enum T {}")]), ["T: a, b"]);
    assert_eq!(found(&[("a", "pub(super) trait T {} mod b { type T = u8; }")]), ["T: a, a::b"]);
    assert_eq!(found(&[("a", r#"extern "C" { pub type T; }"#), ("b", "struct T;")]), ["T: a, b"]);
    assert_eq!(found(&[("a", "struct T;"), ("b", "struct T;")]), [""; 0]);
    assert_eq!(
        found(&[("a", "pub struct T;"), ("b", "fn f() { struct T; } #[cfg(test)] mod c { struct T; }")]),
        [""; 0]
    );
    assert_eq!(found(&[("a::native::b", "pub struct T;"), ("a::page::b", "pub struct T;")]), [""; 0]);
    assert_eq!(found(&[("a::native", "pub struct T;"), ("a::page::b", "pub struct T;")]), ["T: a::native, a::page::b"]);
}
