//! The conditions of a comparison, and its table: medians over runs, ratios of paired runs.

use std::{fmt::Write as _, path::PathBuf};

/// A measurement condition, the same for all contenders.
pub(super) struct Condition {
    /// The name for `--only`.
    pub(super) name: &'static str,
    what: &'static str,
    /// Options of the labs.
    pub(super) options: &'static [&'static str],
    /// The value of the labs' option `--only`.
    pub(super) measurements: &'static str,
    /// Whether Tor's lab has the measurements.
    pub(super) of_tor: bool,
    figures: &'static [Figure],
}

impl Condition {
    /// Whether the labs need namespaces for this condition, and therefore root.
    pub(super) const fn is_namespaced(&self) -> bool {
        !self.options.is_empty()
    }

    /// Whether the condition itself selects TCP's congestion control.
    pub(super) fn selects_tcp(&self) -> bool {
        self.options.contains(&"--tcp-cc")
    }
}

/// A figure of the table.
struct Figure {
    what: &'static str,
    /// The row of the labs' output; with `*` at the end, the median of all rows with that prefix.
    row: &'static str,
}

const ONE: Figure = Figure { what: "one stream, MiB/s", row: "c0.bulk_1.throughput" };
const ONE_CPU: Figure = Figure { what: "one stream, CPU-s/GiB", row: "c0.bulk_1.cpu_per_gib" };
const SIXTEEN: Figure = Figure { what: "16 streams on 16 circuits, MiB/s", row: "c0.bulk_16_circ16.throughput" };
const SIXTEEN_CPU: Figure =
    Figure { what: "16 streams on 16 circuits, CPU-s/GiB", row: "c0.bulk_16_circ16.cpu_per_gib" };
const JAIN: Figure = Figure { what: "16 streams on 16 circuits, Jain's index", row: "c0.bulk_16_circ16.jain" };
const MEMORY: Figure = Figure { what: "an idle relay's memory, MiB", row: "rss_idle.r*" };
const LIGHT_P50: Figure =
    Figure { what: "first byte beside 16 loaded circuits, p50, ms", row: "c0.mix.ttfb.ttfb_total_p50" };
const LIGHT_P95: Figure =
    Figure { what: "first byte beside 16 loaded circuits, p95, ms", row: "c0.mix.ttfb.ttfb_total_p95" };

const CHANNEL: Figure = Figure { what: "an idle channel's memory at a relay, kB", row: "memory_per_channel.r0" };
const BESIDE: &[Figure] = &[
    Figure { what: "one stream beside a TCP connection, MiB/s", row: "c0.beside.overlay.throughput" },
    Figure { what: "the TCP connection, MiB/s", row: "c0.beside.tcp.throughput" },
];

const BULK: &str = "bulk_1,bulk_16_circ16";
const BULK_FIGURES: &[Figure] = &[ONE, SIXTEEN, JAIN];

pub(super) const CONDITIONS: &[Condition] = &[
    Condition {
        name: "loopback",
        what: "loopback",
        options: &[],
        measurements: "mem,bulk_1,bulk_16_circ16",
        of_tor: true,
        figures: &[ONE, ONE_CPU, SIXTEEN, SIXTEEN_CPU, JAIN, MEMORY],
    },
    Condition {
        name: "delay-25",
        what: "25 ms a link",
        options: &["--delay-ms", "25"],
        measurements: BULK,
        of_tor: true,
        figures: BULK_FIGURES,
    },
    Condition {
        name: "loss-0.1",
        what: "25 ms, 0.1 % lost",
        options: &["--delay-ms", "25", "--loss", "0.1"],
        measurements: BULK,
        of_tor: true,
        figures: BULK_FIGURES,
    },
    Condition {
        name: "loss-1",
        what: "25 ms, 1 % lost",
        options: &["--delay-ms", "25", "--loss", "1"],
        measurements: BULK,
        of_tor: true,
        figures: BULK_FIGURES,
    },
    Condition {
        name: "delay-100",
        what: "100 ms a link",
        options: &["--delay-ms", "100"],
        measurements: BULK,
        of_tor: true,
        figures: BULK_FIGURES,
    },
    Condition {
        name: "rate-50",
        what: "25 ms, 50 Mbit/s into each node",
        options: &["--delay-ms", "25", "--rate-mbit", "50"],
        measurements: "bulk_1,bulk_16_circ16,mix",
        of_tor: true,
        figures: &[ONE, SIXTEEN, JAIN, LIGHT_P50, LIGHT_P95],
    },
    Condition {
        name: "jitter",
        what: "25 ms, 10 ms jitter, 5 % held 5 ms longer",
        options: &["--delay-ms", "25", "--jitter-ms", "10", "--reorder", "5"],
        measurements: BULK,
        of_tor: true,
        figures: BULK_FIGURES,
    },
    Condition {
        name: "beside-bbr",
        what: "25 ms, 50 Mbit/s, TCP with BBR",
        options: &["--delay-ms", "25", "--rate-mbit", "50", "--tcp-cc", "bbr"],
        measurements: "beside",
        of_tor: true,
        figures: BESIDE,
    },
    Condition {
        name: "beside-cubic",
        what: "25 ms, 50 Mbit/s, TCP with CUBIC",
        options: &["--delay-ms", "25", "--rate-mbit", "50", "--tcp-cc", "cubic"],
        measurements: "beside",
        of_tor: true,
        figures: BESIDE,
    },
    Condition {
        name: "channels",
        what: "loopback, 1,024 idle channels",
        options: &[],
        measurements: "channels",
        of_tor: false,
        figures: &[CHANNEL],
    },
];

/// A program that the labs measure.
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) lab: &'static str,
    /// The umbel program; `None` for Tor.
    pub(super) program: Option<PathBuf>,
}

/// The list of conditions, for the help text.
pub(super) fn list_of_conditions() -> String {
    let mut text = "conditions:\n".to_owned();
    for condition in CONDITIONS {
        let _ = writeln!(text, "  {:12} {}", condition.name, condition.what);
    }
    text.push_str("figures of each:\n");
    for figure in BULK_FIGURES {
        let _ = writeln!(text, "  {}", figure.what);
    }
    for condition in CONDITIONS {
        let is_further = |figure: &&Figure| BULK_FIGURES.iter().all(|other| other.row != figure.row);
        for figure in condition.figures.iter().filter(is_further) {
            let _ = writeln!(text, "  {} ({})", figure.what, condition.name);
        }
    }
    text
}

/// One figure of one run.
struct Value {
    condition: &'static str,
    row: &'static str,
    contender: usize,
    run: usize,
    value: f64,
}

/// Values of the labs' output so far.
#[derive(Default)]
pub(super) struct Results {
    values: Vec<Value>,
    /// Runs without output, or with wrong bytes.
    failures: Vec<String>,
    /// Failed requests.
    errors: Vec<String>,
    /// Largest use of the machine by other processes in any measurement, in cores.
    foreign_cores: f64,
    tor_version: String,
    tcp_cc: String,
}

impl Results {
    /// Adds the output of a lab for the contender with index `contender` in run `run`.
    pub(super) fn add(&mut self, condition: &Condition, contender: usize, run: usize, run_name: &str, output: &str) {
        let mut rows = Vec::new();
        for line in output.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(text)) = (words.next(), words.next()) else { continue };
            match (name, name.rsplit('.').next()) {
                ("tor_version", _) => text.clone_into(&mut self.tor_version),
                ("tcp_cc_in_namespaces", _) if !condition.selects_tcp() => text.clone_into(&mut self.tcp_cc),
                (_, Some("corrupt")) => self.failures.push(format!("{run_name}: {name} {text}")),
                (_, Some("errors" | "timeout")) => self.errors.push(format!("{run_name}: {name} {text}")),
                _ => {}
            }
            let Ok(value) = text.parse::<f64>() else { continue };
            if name.ends_with(".foreign_cores") {
                self.foreign_cores = self.foreign_cores.max(value);
            }
            rows.push((name, value));
        }
        for figure in condition.figures {
            let matching = rows.iter().filter(|(name, _)| figure.is_row(name)).map(|(_, value)| *value);
            if let Some(value) = median(matching.collect()) {
                self.values.push(Value { condition: condition.name, row: figure.row, contender, run, value });
            }
        }
    }

    pub(super) fn add_failure(&mut self, what: String) {
        self.failures.push(what.replace('\n', " "));
    }

    /// Number of failed runs.
    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }

    /// The table's rows for a condition.
    pub(super) fn rows(&self, condition: &Condition, contenders: &[Contender]) -> String {
        let mut text = String::new();
        for figure in condition.figures {
            let _ = write!(text, "| {} | {} ", condition.what, figure.what);
            for number in 0..contenders.len() {
                let _ = write!(text, "| {} ", summary(&self.runs_of(condition, figure, number)));
                if number > 0 {
                    let ratio = self.ratio(condition, figure, number).map_or_else(|| "–".to_owned(), significant);
                    let _ = write!(text, "| {ratio} ");
                }
            }
            text.push_str("|\n");
        }
        text
    }

    /// The notes below the table.
    pub(super) fn footer(&self, runs: usize, tor: bool) -> String {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let runs_note = match runs {
            1 => "One run of each".to_owned(),
            runs => format!("Medians of {runs} alternating runs (minimum–maximum); ratios are medians of paired runs"),
        };
        let mut text = format!("{runs_note}. Everything on {cores} cores. CPU, time and memory: less is better.");
        if tor && !self.tor_version.is_empty() {
            let _ = write!(text, " Tor {}.", self.tor_version);
        }
        if !self.tcp_cc.is_empty() {
            let _ = write!(text, " TCP: {}.", self.tcp_cc);
        }
        let _ = write!(text, " Other processes used at most {:.2} cores.", self.foreign_cores);
        for (title, lines) in [("failed", &self.failures), ("errors", &self.errors)] {
            lines.iter().for_each(|line| _ = write!(text, "\n- {title}: {line}"));
        }
        text
    }

    /// A figure's value in each run that has one, with the run's number.
    fn runs_of(&self, condition: &Condition, figure: &Figure, contender: usize) -> Vec<(usize, f64)> {
        let matches = |value: &&Value| {
            value.condition == condition.name && value.row == figure.row && value.contender == contender
        };
        self.values.iter().filter(matches).map(|value| (value.run, value.value)).collect()
    }

    /// The ratio of the first contender's figure to that of contender `other`: the median over the runs with both.
    fn ratio(&self, condition: &Condition, figure: &Figure, other: usize) -> Option<f64> {
        let others = self.runs_of(condition, figure, other);
        let of_run = |(run, value): (usize, f64)| {
            let (_, other) = others.iter().find(|(other_run, _)| *other_run == run)?;
            (*other > 0.0).then(|| value / other)
        };
        median(self.runs_of(condition, figure, 0).into_iter().filter_map(of_run).collect())
    }
}

impl Figure {
    fn is_row(&self, name: &str) -> bool {
        self.row.strip_suffix('*').map_or(name == self.row, |beginning| name.starts_with(beginning))
    }
}

/// The table's first two lines.
pub(super) fn header(contenders: &[Contender]) -> String {
    let mut titles = vec!["condition".to_owned(), "figure".to_owned()];
    for (number, contender) in contenders.iter().enumerate() {
        titles.push(contender.name.to_owned());
        if number > 0 {
            titles.push(format!("Umbel/{}", contender.name));
        }
    }
    format!("| {} |\n|---|---|{}", titles.join(" | "), "---:|".repeat(titles.len().saturating_sub(2)))
}

/// Median, and the range if there are several values.
fn summary(runs: &[(usize, f64)]) -> String {
    let values: Vec<f64> = runs.iter().map(|(_, value)| *value).collect();
    let minimum = values.iter().copied().fold(f64::INFINITY, f64::min);
    let maximum = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let several = values.len() > 1;
    match median(values) {
        None => "–".to_owned(),
        Some(median) if several => {
            format!("{} ({}–{})", significant(median), significant(minimum), significant(maximum))
        }
        Some(median) => significant(median),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = values.get((values.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(*lower, upper))
}

/// Three significant digits down to a thousandth; all digits before the point.
fn significant(value: f64) -> String {
    let digits: usize = match value.abs() {
        above if above >= 99.95 => 0,
        above if above >= 9.995 => 1,
        above if above >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::{CONDITIONS, Contender, Results, header, median, significant};

    fn contenders() -> [Contender; 2] {
        ["Umbel", "Tor"].map(|name| Contender { name, lab: "lab", program: None })
    }

    #[test]
    fn conditions_have_distinct_names() {
        for (number, condition) in CONDITIONS.iter().enumerate() {
            assert!(CONDITIONS[number + 1..].iter().all(|other| other.name != condition.name));
        }
    }

    #[test]
    fn ratios_compare_runs_that_both_contenders_have() {
        let mut results = Results::default();
        let condition = &CONDITIONS[1];
        for (contender, run, value) in [(0, 0, 10.0), (1, 0, 2.0), (0, 1, 90.0), (0, 2, 12.0), (1, 2, 3.0)] {
            let output =
                format!("loss_per_link 0 %\nc0.bulk_1.throughput {value} MiB/s\ntcp_cc_in_namespaces bbr text\n");
            results.add(condition, contender, run, "a run", &output);
        }
        let rows = results.rows(condition, &contenders());
        assert_eq!(rows.lines().count(), 3);
        let first = rows.lines().next().unwrap();
        assert_eq!(first, "| 25 ms a link | one stream, MiB/s | 12.0 (10.0–90.0) | 2.50 (2.00–3.00) | 4.50 |");
        assert_eq!(rows.lines().nth(1).unwrap().matches('–').count(), 3, "the second figure has no value");
        assert_eq!(header(&contenders()).lines().nth(1), Some("|---|---|---:|---:|---:|"));
        assert!(results.footer(3, true).contains("TCP: bbr."));
    }

    #[test]
    fn an_idle_relay_is_the_median_of_all_relays() {
        let mut results = Results::default();
        let output =
            "rss_idle.dir 99 MiB\nrss_idle.r0 10 MiB\nrss_idle.r1 14 MiB\nrss_idle.r2 11 MiB\nrss_idle.c0 5 MiB\n";
        results.add(&CONDITIONS[0], 0, 0, "a run", output);
        assert!(results.rows(&CONDITIONS[0], &contenders()).contains("memory, MiB | 11.0 |"));
    }

    #[test]
    fn wrong_bytes_are_failures_and_failed_requests_are_listed() {
        let mut results = Results::default();
        let output = "c0.bulk_1.errors 2 count\nc0.bulk_1.corrupt 1 count\nc0.bulk_1.foreign_cores 0.5 cores\n";
        results.add(&CONDITIONS[1], 0, 0, "loss-1, run 1, Umbel", output);
        assert_eq!(results.failures(), 1);
        let footer = results.footer(1, false);
        assert!(footer.contains("0.50 cores"));
        assert!(footer.contains("- errors: loss-1, run 1, Umbel: c0.bulk_1.errors 2"));
    }

    #[test]
    fn medians_and_significant_digits_are_computed() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
        assert_eq!(
            ["123", "12.3", "1.23", "0.992", "0.052"],
            [123.4, 12.34, 1.234, 0.992, 0.0521].map(significant)[..]
        );
    }
}
