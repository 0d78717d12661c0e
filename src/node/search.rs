//! `umbel search`: searches through the running client, and prints the results.
//!
//! An exit supplies the text of the results, so control characters are removed before printing.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    net::SocketAddr,
    process::Stdio,
};

use clap::Args;
use serde::Serialize;

use crate::{
    delegated::text,
    page::api::{ApiComparison, ApiComparisonRow, ApiResult, ApiResults, ApiSearch, OfferedEngine, read_address},
};

use super::{Failure, control};

/// Longest line of text from an exit, in characters.
const MAX_LINE: usize = 2048;
/// Maximum bytes of a query from standard input; larger than any valid query.
const MAX_INPUT: u64 = 64 * 1024;

/// Options of `umbel search`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SearchOptions {
    /// Search terms; `-` reads the terms from standard input, which hides them from other users of this machine
    #[arg(required_unless_present = "engines", value_name = "TERMS")]
    terms: Vec<String>,
    /// Search engine [default: the client's]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Page of results, from 1 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    page: Option<u16>,
    /// Preferred language, such as en or pt-BR
    #[arg(long, value_name = "TAG")]
    language: Option<String>,
    /// Number of exits to query, each over a separate circuit, 1 to 8; the output shows where their results differ, which
    /// can reveal an exit that falsifies results. All these exits see the query, but not the client's address
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=8))]
    exits: Option<u16>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// Show result N in the reader view: fetched through the overlay, text only
    #[arg(long, value_name = "N", conflicts_with_all = ["json", "exits"])]
    open: Option<usize>,
    /// List the engines that the network's exits offer, with the successes and failures of each exit
    #[arg(long, conflicts_with_all = ["terms", "open", "exits"])]
    engines: bool,
    /// Address of the running client's page, the value of its --page option
    #[arg(long, default_value = control::DEFAULT_ADDRESS, value_name = "ADDR")]
    control: SocketAddr,
}

/// Runs the search.
///
/// # Errors
/// When no client answers, or the client returns an error.
pub(crate) async fn run(options: SearchOptions) -> Result<(), Failure> {
    if options.engines {
        let engines: Vec<OfferedEngine> = control::request(options.control, "/api/engines", None::<&()>).await?;
        return if options.json { print_json(&engines) } else { print(&engine_lines(&engines)) };
    }
    let search = ApiSearch {
        terms: terms(&options.terms)?,
        engine: options.engine,
        page: options.page,
        language: options.language,
        exits: options.exits.map(usize::from),
    };
    if options.exits.is_some_and(|exits| exits > 1) {
        let compared: ApiComparison = control::request(options.control, "/api/search", Some(&search)).await?;
        return if options.json { print_json(&compared) } else { print(&compared_lines(&compared)) };
    }
    let searched: ApiResults = control::request(options.control, "/api/search", Some(&search)).await?;
    match options.open {
        Some(number) => open(options.control, &searched, number),
        None if options.json => print_json(&searched),
        None => print(&result_lines(&searched)),
    }
}

fn terms(words: &[String]) -> Result<String, Failure> {
    if words != ["-"] {
        return Ok(words.join(" "));
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text);
    read.map_err(Failure::system("can't read standard input"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Shows a result in the browser, in the reader view of the client's page.
fn open(control: SocketAddr, searched: &ApiResults, number: usize) -> Result<(), Failure> {
    let Some(result) = number.checked_sub(1).and_then(|place| searched.results.get(place)) else {
        return Err(Failure::failed(format!("there is no result {number}: the page has {}", searched.results.len())));
    };
    let address = format!("http://{control}{}", read_address(&result.url));
    print(std::slice::from_ref(&address))?;
    // On a machine without a desktop the command fails, and the user copies the printed URL.
    let _ = std::process::Command::new("xdg-open")
        .arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Ok(())
}

fn result_lines(searched: &ApiResults) -> Vec<String> {
    let mut lines = Vec::new();
    for (place, result) in searched.results.iter().enumerate() {
        lines.extend(one_result(place.saturating_add(1), result));
        lines.push(String::new());
    }
    if searched.results.is_empty() {
        lines.push("No results.".to_owned());
    }
    if let Some(failed_try) = &searched.failed_try {
        lines.push(format!("The first exit, {}, failed: {}.", failed_try.exit, line(&failed_try.reason)));
    }
    lines.push(summary(searched));
    if searched.shared_exit {
        lines.push(
            "This exit also carries other traffic of yours, or did so recently, because no other exit was suitable."
                .to_owned(),
        );
    }
    lines
}

fn one_result(number: usize, result: &ApiResult) -> Vec<String> {
    let mut lines = vec![format!("{number:>2}. {}", bold(&line(&result.title))), format!("    {}", line(&result.url))];
    if !result.snippet.is_empty() {
        lines.push(format!("    {}", line(&result.snippet)));
    }
    lines
}

fn summary(searched: &ApiResults) -> String {
    let total = searched.total.map(|total| format!(" · {total} results")).unwrap_or_default();
    let more =
        if searched.more { format!(" · more with --page {}", searched.page.saturating_add(1)) } else { String::new() };
    let path: Vec<&str> = searched.path.iter().map(|hop| hop.relay.as_str()).collect();
    format!("{}{total} · {:.0} ms by {}{more}", line(&searched.engine), searched.duration_ms, path.join(" → "))
}

fn compared_lines(compared: &ApiComparison) -> Vec<String> {
    let mut lines = Vec::new();
    for (place, row) in compared.rows.iter().enumerate() {
        lines.extend(one_result(place.saturating_add(1), &row.result));
        lines.extend(difference(compared, row).map(|difference| format!("    ! {difference}")));
        lines.push(String::new());
    }
    for exit in &compared.exits {
        let outcome = exit.answer.as_ref().map(summary).or_else(|| exit.error.as_deref().map(line));
        lines.push(format!("exit {}: {}", exit.exit, outcome.unwrap_or_default()));
    }
    let answered = compared.exits.iter().filter(|exit| exit.answer.is_some()).count();
    lines.push(match (compared.agree, answered) {
        (_, 0 | 1) => "Too few exits answered for a comparison.".to_owned(),
        (true, answered) => format!("All {answered} exits that answered returned the same results."),
        (false, _) => "The exits' results differ at the lines with a !: the engine's results vary, or an exit \
                       falsifies them."
            .to_owned(),
    });
    lines
}

/// The differences between the exits' answers about one result, if there are any.
fn difference(compared: &ApiComparison, row: &ApiComparisonRow) -> Option<String> {
    let answered = compared.exits.iter().zip(&row.places).filter(|(exit, _)| exit.answer.is_some());
    let places: Vec<_> = answered.collect();
    let same_place = places.windows(2).all(|pair| matches!(pair, [(_, one), (_, next)] if one == next));
    if same_place && row.same_words {
        return None;
    }
    let positions = places.iter().map(|(exit, place)| match place {
        Some(place) => format!("exit {} returned it at {place}", exit.exit),
        None => format!("exit {} did not return it", exit.exit),
    });
    let words = if row.same_words { "" } else { "; title or snippet differ" };
    Some(format!("{}{words}", positions.collect::<Vec<_>>().join(", ")))
}

fn engine_lines(engines: &[OfferedEngine]) -> Vec<String> {
    if engines.is_empty() {
        return vec!["No exit of this network offers a search engine, or the client has no consensus yet.".to_owned()];
    }
    let mut lines = Vec::new();
    for engine in engines {
        let default = if engine.default { "  (default)" } else { "" };
        lines.push(format!("{}{default}", bold(&line(&engine.engine))));
        for exit in &engine.exits {
            let blocked = exit.blocked_for.map(|left| format!(", not used for {left} s: the engine blocks it"));
            let counts = format!("{} answered, {} failed", exit.answered, exit.failed);
            lines.push(format!("  exit {}  {counts}{}", exit.exit, blocked.unwrap_or_default()));
        }
    }
    lines
}

/// One line of an exit's text without control characters, at most [`MAX_LINE`] characters.
fn line(raw: &str) -> String {
    text::plain(raw, MAX_LINE)
}

fn bold(words: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\u{1b}[1m{words}\u{1b}[0m") } else { words.to_owned() }
}

fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    print(&[serde_json::to_string_pretty(value).map_err(Failure::failed)?])
}

fn print(lines: &[String]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}").map_err(Failure::system("can't write to standard output"))?;
    }
    Ok(())
}
