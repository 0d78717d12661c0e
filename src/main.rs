//! The `umbel` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    umbel::node::cli::run()
}
