//! Text of strangers as it may be shown.

/// One line of at most `most` characters: without controls and marks of direction, white space collapsed.
#[must_use]
pub fn plain(text: &str, most: usize) -> String {
    let hidden =
        |char: char| matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let words: Vec<&str> =
        text.split(|char: char| char.is_whitespace() || char.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().filter(|char| !hidden(*char)).take(most).collect()
}
