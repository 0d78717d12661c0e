//! Umbel's build tool: checks, packages and measurements for developers and CI.
//!
//! `cargo xtask test` is the complete check; most other commands are parts of it. The tool uses only the standard library,
//! so that it builds within a second after a fresh clone.
#![allow(clippy::disallowed_methods, reason = "not part of the core: reads the clock and the environment")]

mod arguments;
mod attack;
mod book;
mod browser;
mod chaos;
mod compare;
mod deny;
mod fuzz;
mod instructions;
mod packages;
mod run;
mod test;
mod wasm;
mod web;

use std::process::ExitCode;

const USAGE: &str = "\
Umbel's build tool.

usage: cargo xtask COMMAND

  test [--list] [--only STEP]…   run all checks, or the given steps
  wasm                           build the protocol core for wasm32-unknown-unknown
  web                            build the wasm library and the pages for browsers into web/dist
  deny                           check licences, bans and sources of the dependencies
  packages                       install the Debian packages that the tests need
  browser                        dial a relay and use the search page in Chromium and Firefox
  instructions                   count the instructions of sealing, receiving, reordering, switching and packing a cell, and compare them with budgets
  chaos [--help] [OPTION]…       make requests for minutes while relays are killed, stopped, restarted, flooded and out of disk
  compare [--help] [OPTION]…     measure Umbel and Tor under delay, loss and rate limits, and print a table
  attack [--help] [OPTION]…      flood a relay with CREATEs from many addresses, and measure an honest client's circuits
  fuzz [--help] [OPTION]…        fuzz all targets in turn, resume, and merge the found inputs into fuzz/corpus
  book                           make a ZIM file of the Rust book for kiwix-serve, and print its path

example: cargo xtask test --only clippy --only wasm
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["test", options @ ..] => test::command(options),
        ["wasm"] => wasm::build().map(drop),
        ["deny"] => deny::check().map(drop),
        ["packages"] => packages::install().map(drop),
        ["instructions"] => instructions::check().map(drop),
        ["chaos", options @ ..] => chaos::command(options),
        ["compare", options @ ..] => compare::command(options),
        ["attack", options @ ..] => attack::command(options),
        ["fuzz", options @ ..] => fuzz::command(options),
        ["book"] => book::command(),
        ["web"] => web::build().map(drop),
        // A subcommand that `web` starts.
        ["bind", name, module, folder] => web::bind(name, module, folder),
        ["browser"] => browser::test().map(drop),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [unknown, ..] => {
            eprint!("xtask: unknown command {unknown:?}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
