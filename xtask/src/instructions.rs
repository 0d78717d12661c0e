//! Instruction counts of sealing, receiving, reordering, switching and packing a cell, by callgrind, against budgets.
//!
//! The workloads are in `benches/instructions.rs`. The benchmark is built in the development profile, so that it shares the
//! dependencies of the tests. Only the crate itself is recompiled with optimisation. The counts differ from those of a
//! release build.

use std::{fs, path::Path};

use crate::run::{Failure, Run, Tally, target_folder};

/// A function of `benches/instructions.rs` and its instruction budget per cell.
struct Budget {
    function: &'static str,
    instructions: u64,
}

/// The budgets, about 10 % above the counts on x86-64 with AVX2. For a budget of 0, the step fails and prints the
/// budget to set.
const BUDGETS: &[Budget] = &[
    Budget { function: "sealing", instructions: 22_100 },
    Budget { function: "receiving", instructions: 5_200 },
    Budget { function: "reordering", instructions: 5_700 },
    Budget { function: "switching", instructions: 8_300 },
    Budget { function: "packing", instructions: 5_100 },
];

/// Margin of a new budget above the count, in per cent.
const HEADROOM_PERCENT: u64 = 10;
/// For a count below this percentage of its budget, the step prints advice to lower the budget.
const LOW_PERCENT: u64 = 80;

/// Compiler options: the crate optimised, without debug assertions and overflow checks; the dependencies as in the
/// tests.
const OPTIMISED: &[&str] = &[
    "profile.dev.package.umbel.opt-level=3",
    "profile.dev.package.umbel.codegen-units=16",
    "profile.dev.package.umbel.debug-assertions=false",
    "profile.dev.package.umbel.overflow-checks=false",
    "profile.dev.incremental=false",
];

/// Counts the instructions of each function, prints the counts, and fails if a count exceeds its budget.
pub(crate) fn check() -> Result<Tally, Failure> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("the budgets are for x86-64 Linux; skipping the check");
        return Ok(Tally::ONE);
    }
    bench().args(["--no-run"]).run()?;
    let folder = target_folder()?.join("instructions");
    fs::create_dir_all(&folder).map_err(|error| Failure::new(format!("can't create {}: {error}", folder.display())))?;
    println!("function    per cell  budget");
    let (mut tally, mut exceeded) = (Tally::default(), Vec::new());
    for budget in BUDGETS {
        let profile = folder.join(format!("{}.out", budget.function));
        let count = count(budget.function, &profile)?;
        println!("{:10} {count:9} {:7}", budget.function, budget.instructions);
        match budget.check_count(count) {
            Ok(advice) => {
                advice.iter().for_each(|advice| println!("{advice}"));
                tally = tally.and(Tally::ONE);
            }
            Err(message) => exceeded.push(format!("{message}; callgrind_annotate {}", profile.display())),
        }
    }
    if exceeded.is_empty() { Ok(tally) } else { Err(Failure::new(exceeded.join("\n"))) }
}

impl Budget {
    /// Advice if `count` is far below the budget; an error if it exceeds the budget.
    fn check_count(&self, count: u64) -> Result<Option<String>, String> {
        let Self { function, instructions } = self;
        let new = count.saturating_mul(HEADROOM_PERCENT.saturating_add(100)) / 100;
        if count > *instructions {
            return Err(format!(
                "{function} takes {count} instructions per cell, above its budget of {instructions}: reduce them, or, if the \
                 cost is justified, raise the budget in xtask/src/instructions.rs to {new}"
            ));
        }
        let low = count.saturating_mul(100) < instructions.saturating_mul(LOW_PERCENT);
        Ok(low.then(|| {
            format!("{function} is far below its budget; lower the budget in xtask/src/instructions.rs to {new}")
        }))
    }
}

/// The cargo command that builds and runs the benchmark.
fn bench() -> Run {
    let build = ["bench", "--quiet", "--locked", "--profile", "dev", "--bench", "instructions"];
    let settings = OPTIMISED.iter().flat_map(|setting| ["--config", setting]);
    Run::cargo().args(build).args(settings)
}

/// Instructions per cell within `function`; writes callgrind's profile to `profile`.
fn count(function: &str, profile: &Path) -> Result<u64, Failure> {
    let out = format!("--callgrind-out-file={}", profile.display());
    let within = format!("--toggle-collect=instructions*::{function}");
    let runner = ["valgrind", "--quiet", "--tool=callgrind", &within, &out];
    let runner = format!("target.'cfg(all())'.runner={runner:?}");
    let cells = bench().args(["--config", runner.as_str()]).try_output()?;
    let cells: u64 = cells
        .parse()
        .map_err(|_| Failure::new(format!("the benchmark printed {cells:?} instead of a number of cells")))?;
    let text = fs::read_to_string(profile)
        .map_err(|error| Failure::new(format!("can't read {}: {error}", profile.display())))?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("totals: ")).and_then(|total| total.trim().parse::<u64>().ok());
    match total.and_then(|total| total.checked_div(cells)) {
        Some(count) if count > 0 => Ok(count),
        _ => Err(Failure::new(format!(
            "callgrind counted nothing in {function}; check that benches/instructions.rs has this function"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;

    const BUDGET: Budget = Budget { function: "sealing", instructions: 1_000 };

    #[test]
    fn a_count_above_its_budget_fails_and_suggests_a_higher_one() {
        assert!(BUDGET.check_count(1_000).is_ok());
        assert!(BUDGET.check_count(1_001).unwrap_err().contains("1101"));
    }

    #[test]
    fn a_count_far_below_its_budget_suggests_a_lower_one() {
        assert_eq!(BUDGET.check_count(800), Ok(None));
        assert!(BUDGET.check_count(700).unwrap().unwrap().contains("770"));
    }
}
