//! Cleaning of untrusted text for display.
//!
//! Titles and snippets come from an engine through an exit; neither is trusted. [`plain`] removes characters that move
//! the cursor, reverse the direction of text, or can carry a hidden mark, and truncates the text. [`plain`] keeps
//! markup: the parser of an answer has removed it, and a page escapes the text later. Both ends call [`plain`]
//! (`proto/09-delegated.md` §5).

/// `text` as one line of at most `max_chars` characters. Invisible characters are removed. White space is collapsed
/// to single spaces and trimmed.
#[must_use]
pub fn plain(text: &str, max_chars: usize) -> String {
    let mut plain = String::with_capacity(text.len().min(max_chars.saturating_mul(2)));
    let (mut chars, mut has_gap) = (0_usize, false);
    for character in text.chars() {
        if character.is_whitespace() {
            has_gap = chars > 0;
            continue;
        }
        if is_hidden(character) {
            continue;
        }
        let added = if has_gap { 2 } else { 1 };
        chars = chars.saturating_add(added);
        if chars > max_chars {
            break;
        }
        if core::mem::take(&mut has_gap) {
            plain.push(' ');
        }
        plain.push(character);
    }
    plain
}

/// Whether `character` has no visible form that all readers share: controls, overrides and isolates of direction,
/// invisible signs and tags (which could mark a text), private-use characters, and non-characters. Joiners and
/// direction marks stay, because Persian, Hebrew, Arabic and several Indic scripts need them.
const fn is_hidden(character: char) -> bool {
    matches!(
        character,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{200b}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{fffe}'..='\u{ffff}'
            | '\u{e0000}'..='\u{10ffff}'
    )
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn white_space_is_collapsed_and_trimmed() {
        assert_eq!(plain("  a\t\r\n b\u{a0}\u{3000}c \n", 100), "a b c");
        assert_eq!(plain(" \n\t", 100), "");
    }

    #[test]
    fn controls_and_direction_overrides_are_removed() {
        assert_eq!(plain("\u{1b}[31mred\u{7}\u{9b}", 100), "[31mred");
        assert_eq!(plain("exe\u{202e}gpj.\u{2066}x\u{2069}", 100), "exegpj.x");
        assert_eq!(plain("a\u{0}b\u{ad}c\u{200b}d\u{feff}e\u{e0041}f", 100), "abcdef");
    }

    #[test]
    fn characters_that_scripts_need_are_kept() {
        for text in [
            "所有権とは何か",
            "ما هي الملكية؟",
            "می\u{200c}خواهم",
            "क\u{94d}\u{200d}ष",
            "Ça va ? Größe",
            "👩\u{200d}🚀",
        ] {
            assert_eq!(plain(text, 100), text);
        }
    }

    #[test]
    fn text_is_truncated_at_a_character() {
        assert_eq!(plain("所有権とは", 3), "所有権");
        assert_eq!(plain("ab cd", 3), "ab");
        assert_eq!(plain("ab cd", 4), "ab c");
        assert_eq!(plain("ab", 0), "");
    }

    #[test]
    fn cleaning_is_idempotent() {
        let once = plain("  a\u{202e} b\u{85}c  d", 5);
        assert_eq!(plain(&once, 5), once);
    }
}
