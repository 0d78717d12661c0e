//! `cargo xtask test`: runs all checks, the fast ones first.

use std::time::{Duration, Instant};

use crate::{
    book, browser, deny, instructions, packages,
    run::{Failure, Run, Tally},
    wasm, web,
};

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Tally, Failure>,
}

const STEPS: &[Step] = &[
    Step { name: "format", what: "the code is formatted by rustfmt", run: format },
    Step { name: "packages", what: "the tests' applications and browsers are installed", run: packages::install },
    Step { name: "book", what: "the Rust book as a ZIM file, for the search engine of the tests", run: book::prepare },
    Step { name: "deny", what: "licences, bans and sources of the dependencies", run: deny::check },
    // Before all steps that build the program, which contains the pages.
    Step { name: "web", what: "the pages for browsers build, and their tests pass", run: web::check },
    Step { name: "clippy", what: "no lint in library, programs, tests and benchmarks", run: clippy },
    Step { name: "docs", what: "the documentation builds without broken links", run: docs },
    Step { name: "wasm", what: "the protocol core and the TLS of pages build for browsers", run: wasm::build },
    Step { name: "wasm-test", what: "the protocol core's own tests, as WebAssembly", run: wasm::test },
    Step { name: "test", what: "unit, vector, simulated and process tests; every fuzz corpus", run: test },
    Step {
        name: "instructions",
        what: "sealing, receiving, reordering, switching and packing a cell stay within their instruction budgets",
        run: instructions::check,
    },
    Step {
        name: "applications",
        what: "curl, wget, git, Python and searches through a testnet; three machines; links with delay and loss; \
               a flood of CREATEs; chaos",
        run: applications,
    },
    Step { name: "doctest", what: "the documentation's examples", run: doctest },
    Step {
        name: "browser",
        what: "Chromium and Firefox dial a relay, and use search page, volunteer's page and badge over a testnet",
        run: browser::test,
    },
];

/// Runs the selected steps, by default all; a failed step doesn't stop the next.
pub(crate) fn command(options: &[&str]) -> Result<(), Failure> {
    let mut only = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--list" => {
                STEPS.iter().for_each(|step| println!("{:12} {}", step.name, step.what));
                return Ok(());
            }
            "--only" => {
                let name = options.next().copied().unwrap_or_default();
                let step = STEPS.iter().find(|step| step.name == name);
                only.push(
                    step.ok_or_else(|| Failure::new(format!("unknown step {name:?}; --list prints the steps")))?.name,
                );
            }
            unknown => {
                return Err(Failure::new(format!(
                    "unknown option {unknown:?}; the options are --list and --only STEP"
                )));
            }
        }
    }
    let chosen = |step: &&Step| only.is_empty() || only.contains(&step.name);
    run(&STEPS.iter().filter(chosen).collect::<Vec<_>>())
}

fn run(steps: &[&Step]) -> Result<(), Failure> {
    let started = Instant::now();
    let mut results = Vec::new();
    for step in steps {
        println!("\n== {}: {}", step.name, step.what);
        let started = Instant::now();
        let outcome = (step.run)();
        if let Err(failure) = &outcome {
            eprintln!("xtask: {failure}");
        }
        results.push((step.name, started.elapsed(), outcome));
    }
    summarise(&results, started.elapsed())
}

fn summarise(results: &[(&str, Duration, Result<Tally, Failure>)], took: Duration) -> Result<(), Failure> {
    println!("\nstep          seconds  passed  failed");
    let mut sum = Tally::default();
    for (name, took, outcome) in results {
        let tally = outcome.as_ref().map_or_else(Failure::tally, |tally| *tally);
        sum = sum.and(tally);
        println!("{name:12} {:8.1} {:7} {:7}", took.as_secs_f64(), tally.passed, tally.failed);
    }
    println!("{:12} {:8.1} {:7} {:7}\n", "all", took.as_secs_f64(), sum.passed, sum.failed);
    for (name, _, outcome) in results {
        if let Err(failure) = outcome {
            println!("FAILED {name}: {failure}");
        }
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 { Ok(()) } else { Err(Failure::new("a step failed")) }
}

fn format() -> Result<Tally, Failure> {
    Run::cargo().args(["fmt", "--all", "--check"]).run()?;
    Run::cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]).run()
}

fn clippy() -> Result<Tally, Failure> {
    let options = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--features",
        "umbel/browser,umbel/browser-tls",
        "--locked",
    ];
    Run::cargo().args(options).args(["--", "-D", "warnings"]).run()
}

fn docs() -> Result<Tally, Failure> {
    let options = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"];
    let features = ["--features", "umbel/browser,umbel/browser-tls"];
    Run::cargo()
        .args(options)
        .args(features)
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .run()
}

fn test() -> Result<Tally, Failure> {
    if has_nextest() {
        return Run::cargo().args(["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]).run();
    }
    println!("cargo-nextest is not installed; using `cargo test`");
    // The tests run the examples. Nextest builds them too, but `cargo test` doesn't with a selection of targets.
    Run::cargo().args(["build", "--workspace", "--locked", "--examples"]).run()?;
    Run::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]).run()
}

fn has_nextest() -> bool {
    Run::cargo().args(["nextest", "--version"]).succeeds()
}

/// The tests of processes that need external programs, and that a plain `cargo test` skips.
fn applications() -> Result<Tally, Failure> {
    // `--test overlay` builds no examples.
    Run::cargo().args(["build", "--locked", "--example", "attack"]).run()?;
    let run = if has_nextest() {
        Run::cargo().args([
            "nextest",
            "run",
            "--locked",
            "--no-fail-fast",
            "--test",
            "overlay",
            "--run-ignored",
            "only",
        ])
    } else {
        let options = ["--locked", "--no-fail-fast", "--test", "overlay", "--", "--ignored", "--test-threads", "1"];
        Run::cargo().args(["test"]).args(options)
    };
    run.first_on_path(&packages::python_folder()?).env("UMBEL_TEST_ZIM", book::zim()?).run()
}

fn doctest() -> Result<Tally, Failure> {
    Run::cargo().args(["test", "--workspace", "--locked", "--doc"]).run()
}
