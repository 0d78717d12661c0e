//! A small full-text index over the sections of Umbel's own documentation, ranked by BM25.
//!
//! Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).

use std::collections::{BTreeMap, BTreeSet};

/// Weight of a word in a title, as a number of occurrences.
const TITLE_WEIGHT: usize = 3;
/// BM25's constants, as suggested by its authors.
const K1: f64 = 1.2;
const B: f64 = 0.75;
/// Largest length of a snippet, in characters.
const SNIPPET: usize = 240;
/// Largest distance from the start of a snippet to the matched word, in bytes.
const SNIPPET_BEFORE: usize = 60;

/// A section of a document. Each section is one page and one search result.
pub(super) struct Section {
    /// The path, such as `/proto/03-cells/fragments`.
    pub(super) path: String,
    /// The headings of section and document.
    pub(super) title: String,
    /// The Markdown without the heading.
    pub(super) text: String,
}

/// The index.
pub(super) struct Index {
    sections: Vec<Section>,
    /// The sections of each word, with the number of its weighted occurrences.
    postings: BTreeMap<String, Vec<(usize, f64)>>,
    /// The number of words of each section, with a weighted title.
    lengths: Vec<f64>,
    mean_length: f64,
}

impl Index {
    /// Indexes `documents`, each with its name and its Markdown.
    pub(super) fn new(documents: &[(&str, &str)]) -> Self {
        let sections: Vec<Section> = documents.iter().flat_map(|(name, text)| sections(name, text)).collect();
        let mut postings: BTreeMap<String, Vec<(usize, f64)>> = BTreeMap::new();
        let mut lengths = Vec::new();
        for (number, section) in sections.iter().enumerate() {
            let mut counts: BTreeMap<String, f64> = BTreeMap::new();
            let text = plain(&section.text);
            let titles = core::iter::repeat_n(section.title.as_str(), TITLE_WEIGHT);
            for (_, word) in titles.chain([text.as_str()]).flat_map(words) {
                *counts.entry(word).or_default() += 1.0;
            }
            lengths.push(counts.values().sum());
            for (word, count) in counts {
                postings.entry(word).or_default().push((number, count));
            }
        }
        let mean_length = lengths.iter().sum::<f64>() / (sections.len().max(1) as f64);
        Self { sections, postings, lengths, mean_length }
    }

    /// The sections that contain a word of `terms`, by descending score. Sections of equal score are in the order of the
    /// documents.
    pub(super) fn search(&self, terms: &str) -> Vec<&Section> {
        let terms: BTreeSet<String> = words(terms).map(|(_, word)| word).collect();
        let mut scores: BTreeMap<usize, f64> = BTreeMap::new();
        for postings in terms.iter().filter_map(|term| self.postings.get(term)) {
            let (all, found) = (self.sections.len() as f64, postings.len() as f64);
            let rarity = ((all - found + 0.5) / (found + 0.5)).ln_1p();
            for (number, count) in postings {
                let length = self.lengths.get(*number).copied().unwrap_or_default() / self.mean_length;
                let weight = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length));
                *scores.entry(*number).or_default() += rarity * weight;
            }
        }
        let mut ranked: Vec<(usize, f64)> = scores.into_iter().collect();
        ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        ranked.into_iter().filter_map(|(number, _)| self.sections.get(number)).collect()
    }

    /// The section at `path`.
    pub(super) fn at(&self, path: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.path == path)
    }

    /// All sections, in the order of the documents.
    pub(super) fn all(&self) -> &[Section] {
        &self.sections
    }
}

impl Section {
    /// The text around the first of `terms` in the section, without markup.
    pub(super) fn snippet(&self, terms: &str) -> String {
        let wanted: BTreeSet<String> = words(terms).map(|(_, word)| word).collect();
        let text = plain(&self.text);
        let found = words(&text).find(|(_, word)| wanted.contains(word)).map_or(0, |(at, _)| at);
        let start = words(&text).map(|(at, _)| at).find(|at| at.saturating_add(SNIPPET_BEFORE) >= found).unwrap_or(0);
        let rest = text.get(start..).unwrap_or_default();
        let end = rest.char_indices().map(|(at, _)| at).nth(SNIPPET);
        let piece = end.and_then(|end| rest.get(..end)?.rsplit_once(' ')).map(|(piece, _)| piece);
        let (before, after) = (if start > 0 { "… " } else { "" }, if piece.is_some() { " …" } else { "" });
        format!("{before}{}{after}", piece.unwrap_or(rest))
    }
}

/// The sections of the document `name`, split at its headings.
fn sections(name: &str, text: &str) -> Vec<Section> {
    let document = format!("/{}", name.strip_suffix(".md").unwrap_or(name));
    let mut sections: Vec<Section> = Vec::new();
    let mut document_title = name.to_owned();
    let mut in_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        let heading = line.strip_prefix('#').filter(|_| !in_code).map(|rest| plain(rest.trim_start_matches('#')));
        let Some(heading) = heading else {
            if let Some(section) = sections.last_mut() {
                section.text.push_str(line);
                section.text.push('\n');
            }
            continue;
        };
        let slug: Vec<String> = words(&heading).map(|(at, _)| word_at(&heading, at).to_lowercase()).collect();
        let (mut path, title) = if sections.is_empty() {
            document_title = heading;
            (document.clone(), document_title.clone())
        } else {
            (format!("{document}/{}", slug.join("-")), format!("{heading} · {document_title}"))
        };
        while sections.iter().any(|section| section.path == path) {
            path.push_str("-again");
        }
        sections.push(Section { path, title, text: String::new() });
    }
    sections
}

/// Markdown as plain text, without markup and URLs of references, with collapsed white space.
pub(super) fn plain(markdown: &str) -> String {
    let mut text = String::with_capacity(markdown.len());
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or(after, |(_, rest)| rest);
    }
    text.push_str(rest);
    text.retain(|character| !matches!(character, '`' | '*' | '|' | '[' | ']'));
    text.split_whitespace().filter(|word| !word.chars().all(|mark| mark == '-')).collect::<Vec<_>>().join(" ")
}

/// The words of `text`, each with its position and its form in the index: lower case, without a plural's s.
fn words(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut after_word = false;
    let starts = text.char_indices().filter_map(move |(at, character)| {
        let begins = character.is_alphanumeric() && !after_word;
        after_word = character.is_alphanumeric();
        begins.then_some(at)
    });
    starts.map(|at| {
        let word = word_at(text, at).to_lowercase();
        let singular = word.strip_suffix('s').filter(|stem| stem.len() > 2 && !stem.ends_with('s'));
        (at, singular.map(str::to_owned).unwrap_or(word))
    })
}

/// The word that begins at `at`.
fn word_at(text: &str, at: usize) -> &str {
    let rest = text.get(at..).unwrap_or_default();
    rest.split(|character: char| !character.is_alphanumeric()).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTS: &[(&str, &str)] = &[
        ("one.md", "# Cells\n\nA cell is 1,024 bytes.\n\n## Layers\n\nA [layer](x.md) of `ChaCha20` for each *hop*.\n"),
        (
            "two.md",
            "# Relays\n\nRelays pass cells on.\n```\n# no heading\n```\n## Layers\n\n日本語 here.\n## Layers\nMore.\n",
        ),
    ];

    fn found(terms: &str) -> Vec<String> {
        Index::new(DOCUMENTS).search(terms).iter().map(|section| section.path.clone()).collect()
    }

    #[test]
    fn sections_are_ranked_by_relevance() {
        assert_eq!(found("cell")[0], "/one");
        assert_eq!(found("Relay CELLS")[0], "/two");
        assert_eq!(found("layers hop")[0], "/one/layers");
        assert_eq!(found("bytes"), ["/one"]);
        assert_eq!(found("日本語"), ["/two/layers"]);
        assert!(found("nothing like it").is_empty() && found("").is_empty() && found("-- !").is_empty());
    }

    #[test]
    fn every_section_has_its_own_path() {
        let index = Index::new(DOCUMENTS);
        let paths: BTreeSet<&str> = index.all().iter().map(|section| section.path.as_str()).collect();
        assert_eq!(paths.len(), index.all().len());
        assert_eq!(index.at("/two/layers-again").unwrap().title, "Layers · Relays");
        assert!(index.at("/two").unwrap().text.contains("# no heading"));
    }

    #[test]
    fn a_snippet_is_plain_text_around_the_matched_word() {
        let text = format!("{}needle {}", "before ".repeat(50), "after ".repeat(100));
        let section = Section { path: String::new(), title: String::new(), text };
        let snippet = section.snippet("needles");
        assert!(snippet.contains("needle after") && snippet.len() < 300, "{snippet}");
        assert!(snippet.starts_with("… before") && snippet.ends_with("after …"), "{snippet}");
        assert_eq!(
            Index::new(DOCUMENTS).at("/one/layers").unwrap().snippet("hop"),
            "A layer of ChaCha20 for each hop."
        );
        let section = Section { text: "日本語".repeat(200), ..section };
        assert!(section.snippet("日本語").starts_with("日本語"));
    }
}
