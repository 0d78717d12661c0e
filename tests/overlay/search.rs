//! Searches through a testnet: the results equal the engine's in its order, also with faulty exits or engines.

use std::{
    fs,
    process::Output,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use serde_json::Value;

use super::{engines::*, harness::*};

/// Realistic searches of the Rust book; each has results.
const QUERIES: &[&str] = &[
    "ownership",
    "borrowing",
    "lifetimes",
    "trait objects",
    "generic types",
    "closures",
    "iterators",
    "smart pointers",
    "reference cycles",
    "threads",
    "channels message passing",
    "mutex",
    "send and sync",
    "macros",
    "unsafe code",
    "pattern matching",
    "if let",
    "match arms",
    "enums",
    "structs",
    "method syntax",
    "vectors",
    "strings utf-8",
    "hash maps",
    "panic",
    "result error handling",
    "question mark operator",
    "modules",
    "packages and crates",
    "use keyword",
    "paths",
    "cargo workspaces",
    "release profiles",
    "publish crates.io",
    "documentation comments",
    "unit tests",
    "integration tests",
    "command line arguments",
    "environment variables",
    "standard error",
    "web server",
    "thread pool",
    "async await",
    "futures",
    "streams",
    "deref coercion",
    "drop trait",
    "interior mutability",
    "state pattern",
    "variables mutability",
];

/// `umbel search` with these arguments, through the testnet's client.
fn search(testnet: &Testnet, arguments: &[&str]) -> Output {
    umbel().args(["search", &format!("--control={}", testnet.page)]).args(arguments).output().unwrap()
}

/// The output of `umbel search --json`.
fn found(testnet: &Testnet, arguments: &[&str]) -> Value {
    let output = search(testnet, &[&["--json"], arguments].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn values(found: &Value, key: &str) -> Vec<String> {
    let results = found["results"].as_array().unwrap_or_else(|| panic!("{found}"));
    results.iter().map(|result| result[key].as_str().unwrap().to_owned()).collect()
}

/// The standard error of a failed command.
fn refusal(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&output.stdout));
    text
}

#[test]
fn a_testnet_without_options_searches_umbels_own_documentation() {
    let testnet = Testnet::start(&[]);
    let answer = found(&testnet, &["guard", "sample"]);
    assert_eq!(values(&answer, "title").len(), 10, "{answer}");
    assert!(values(&answer, "title").iter().any(|title| title.to_lowercase().contains("guard")), "{answer}");
    let second = found(&testnet, &["--page=2", "guard", "sample"]);
    assert_ne!(values(&answer, "url"), values(&second, "url"));
    let output = search(&testnet, &["guard", "sample"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&values(&answer, "title")[0]), "{output:?}");
}

#[test]
#[ignore = "needs kiwix-serve and the Rust book: cargo xtask test runs it"]
fn fifty_searches_return_the_engines_results_in_its_order() {
    let testnet = Testnet::start(&[&format!("--zim={}", rust_book().display())]);
    let kiwix = kiwix();
    for query in QUERIES {
        let pattern = query.replace(' ', "+");
        let direct = kiwix.get(&format!("/search?format=xml&pattern={pattern}&start=1&pageLength=10"));
        let items: String = direct.split_once("<item>").unwrap_or_else(|| panic!("{query}: {direct}")).1.to_owned();
        let titles = elements(&items, "title").into_iter().filter(|title| title != "The Rust Programming Language");
        let expected: Vec<String> = titles.collect();
        let answer = found(&testnet, &[query]);
        let got: Vec<String> = values(&answer, "title").into_iter().take(10).collect();
        assert_eq!(got, expected, "{query}");
        let paths = |urls: Vec<String>| -> Vec<String> {
            urls.iter().map(|url| url[url.find("/rust-book/").unwrap()..].to_owned()).collect()
        };
        let urls: Vec<String> = paths(values(&answer, "url")).into_iter().take(10).collect();
        assert_eq!(urls, paths(elements(&items, "link")), "{query}");
    }
}

#[test]
#[ignore = "needs kiwix-serve, the Rust book and searx: cargo xtask test runs it"]
fn the_json_of_searx_is_parsed() {
    let folder = tempfile::tempdir().unwrap();
    let kiwix = kiwix();
    let searx = searx(&kiwix, folder.path());
    let testnet = Testnet::start(&[&format!("--engine={}", searx_description(&searx, folder.path()).display())]);
    for (query, page) in [("ownership", 1), ("ownership", 2), ("trait objects", 1)] {
        let pattern = query.replace(' ', "+");
        let direct = searx.get(&format!("/search?format=json&q={pattern}&pageno={page}"));
        let direct: Value = serde_json::from_str(&direct).unwrap();
        let answer = found(&testnet, &["--engine=searxng", &format!("--page={page}"), query]);
        assert_eq!(values(&answer, "title"), values(&direct, "title"), "{query}");
    }
}

fn searx_description(searx: &Served, folder: &std::path::Path) -> std::path::PathBuf {
    let shipped = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/engines/searxng.xml")).unwrap();
    let file = folder.join("searx.xml");
    fs::write(&file, shipped.replace("https://searx.example.org", &format!("http://{}", searx.address))).unwrap();
    file
}

#[test]
fn each_kind_of_invalid_answer_has_its_own_error() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Scripted::start(|target| {
        let contains = |word: &str| target.contains(word);
        if contains("malformed") {
            ok("application/rss+xml", "<rss><channel><item>")
        } else if contains("huge") {
            ok("application/rss+xml", &"x".repeat(10 << 20))
        } else if contains("broken") {
            status("500 Internal Server Error")
        } else if contains("away") {
            status("302 Found\r\nLocation: http://169.254.169.254/latest/meta-data/")
        } else {
            rss(&["One", "Two"])
        }
    });
    let testnet = Testnet::start(&[&format!("--engine={}", engine.describe("scripted", folder.path()).display())]);
    let fails = |query: &str| refusal(&search(&testnet, &["--engine=scripted", query]));
    let errors: Vec<String> = ["malformed", "huge", "broken", "away"].iter().map(|query| fails(query)).collect();
    for (number, text) in errors.iter().enumerate() {
        assert!(text.starts_with("umbel: "), "{text}");
        assert!(errors.iter().skip(number + 1).all(|other| other != text), "each error is different: {errors:?}");
    }
    for query in ["日本語", "بحث", "a\"b<c>&d", &"long ".repeat(300)] {
        assert_eq!(values(&found(&testnet, &["--engine=scripted", query]), "title"), ["One", "Two"], "{query}");
    }
    for query in ["a\u{7}b", &"long ".repeat(2000), " "] {
        let output = search(&testnet, &["--engine=scripted", query]);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    }
    assert_eq!(search(&testnet, &["--engine=nowhere", "one"]).status.code(), Some(2), "an engine that no exit offers");
}

#[test]
fn another_exit_queries_an_engine_that_blocks_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let requests = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&requests);
    let engine = Scripted::start(move |_| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => status("429 Too Many Requests"),
        _ => rss(&["One"]),
    });
    let testnet = Testnet::start(&[&format!("--engine={}", engine.describe("scripted", folder.path()).display())]);
    for query in 1..=3 {
        assert_eq!(values(&found(&testnet, &["--engine=scripted", "one"]), "title"), ["One"]);
        assert_eq!(requests.load(Ordering::Relaxed), query + 1, "one more request than searches");
    }
}

#[test]
fn differences_between_exits_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let requests = AtomicUsize::new(0);
    let engine = Scripted::start(move |_| match requests.fetch_add(1, Ordering::Relaxed) {
        0 => rss(&["One", "Two", "Three"]),
        _ => rss(&["One", "Planted", "Three"]),
    });
    let testnet = Testnet::start(&[&format!("--engine={}", engine.describe("scripted", folder.path()).display())]);
    let output = search(&testnet, &["--engine=scripted", "--exits=2", "one"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let line = |title: &str| text.lines().find(|line| line.contains(title)).unwrap_or_else(|| panic!("{text}"));
    assert!(["One", "Two", "Planted", "Three"].iter().all(|title| !line(title).is_empty()));
    assert!(text.contains("differ"), "{text}");
}

#[test]
fn an_unreachable_engine_is_reported_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = describe("dead", &format!("http://{unused}/search?q={{searchTerms}}"), folder.path());
    let testnet = Testnet::start(&[&format!("--engine={}", file.display())]);
    let started = Instant::now();
    let text = refusal(&search(&testnet, &["--engine=dead", "one"]));
    assert!(text.contains("engine"), "{text}");
    assert!(started.elapsed().as_secs() < 10);
}

#[test]
fn no_log_or_file_contains_a_query_at_any_level() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Scripted::start(|target| match target {
        target if target.contains("malformed") => ok("application/rss+xml", "<rss><channel><item>secretanswer"),
        _ => rss(&["Secretresult"]),
    });
    let file = engine.describe("scripted", folder.path());
    let testnet = Testnet::start(&["--log=trace", &format!("--engine={}", file.display())]);
    found(&testnet, &["--engine=scripted", "secretquery"]);
    refusal(&search(&testnet, &["--engine=scripted", "secretquery malformed"]));
    search(&testnet, &["--engine=scripted", "--exits=2", "secretquery"]);
    for way in ["--via=request", "--via=stream"] {
        let url = format!("http://{}/secretquery?secretquery", engine.address);
        let fetched = umbel().args(["fetch", &format!("--control={}", testnet.page), way, &url]).output().unwrap();
        assert!(fetched.status.success(), "{fetched:?}");
    }
    let files = files_in(testnet.folder.path());
    assert!(files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "log")).count() >= 9);
    for file in files {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).to_lowercase();
        for secret in ["secretquery", "malformed", "secretresult", "secretanswer", &engine.address.to_string()] {
            assert!(!text.contains(secret), "{} holds {secret}", file.display());
        }
    }
}

fn files_in(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
}
