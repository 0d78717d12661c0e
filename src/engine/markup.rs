//! Converts untrusted HTML to plain text.
//!
//! One pass without a tree, so the cost is linear in the length. Entities are decoded once; tags, comments, scripts
//! and styles are removed.

use super::parser::entities::decoded;
use crate::delegated::text;

/// Bytes of input for each character of output, because tags take space.
const BYTES_PER_CHAR: usize = 16;

/// At most `max_chars` characters of the text in `html`, cleaned for display.
pub(super) fn stripped(html: &str, max_chars: usize) -> String {
    let html = beginning(html, max_chars.saturating_mul(BYTES_PER_CHAR));
    let words = if html.contains('<') { untagged(html) } else { html.to_owned() };
    if words.contains('&') { text::plain(&decoded(&words), max_chars) } else { text::plain(&words, max_chars) }
}

/// At most `max_bytes` of `html`, without a partial tag at the end.
fn beginning(html: &str, max_bytes: usize) -> &str {
    if html.len() <= max_bytes {
        return html;
    }
    let beginning = html.get(..html.floor_char_boundary(max_bytes)).unwrap_or_default();
    match beginning.rsplit_once('<') {
        Some((whole, piece)) if !piece.contains('>') => whole,
        _ => beginning,
    }
}

/// The text in `html`; a remaining `<` is replaced by an entity.
fn untagged(html: &str) -> String {
    let (mut words, mut rest) = (String::with_capacity(html.len()), html);
    while let Some((before, after)) = rest.split_once('<') {
        words.push_str(before);
        rest = match behind_tag(after, &mut words) {
            Some(behind) => behind,
            None => {
                words.push_str("&lt;");
                after
            }
        };
    }
    words.push_str(rest);
    words
}

/// The text after the tag, comment or similar at the beginning of `rest`, which lacks its `<`; empty if it doesn't
/// end. `None` if it is no tag.
fn behind_tag<'a>(rest: &'a str, words: &mut String) -> Option<&'a str> {
    let behind = |end: &str| rest.split_once(end).map_or("", |(_, behind)| behind);
    if rest.starts_with("!--") {
        // The empty comment <!--> is treated alike: what follows it is a comment for most parsers.
        return Some(behind("-->"));
    }
    let (ends, named) = rest.strip_prefix('/').map_or((false, rest), |named| (true, named));
    let begins_name = named.starts_with(|letter: char| letter.is_ascii_alphabetic());
    if !begins_name {
        return (ends || rest.starts_with(['!', '?'])).then(|| behind(">"));
    }
    if !begins_tag(named) {
        return None;
    }
    let end = named.find(|letter: char| letter.is_whitespace() || matches!(letter, '/' | '>')).unwrap_or(named.len());
    let (name, attributes) = named.split_at_checked(end)?;
    let name = name.to_ascii_lowercase();
    if parts_words(&name) {
        words.push(' ');
    }
    let behind = behind_attributes(attributes);
    Some(if !ends && is_silent(&name) { behind_element(behind, &name) } else { behind })
}

/// The text after the `>` that ends a tag; a `>` in a quoted value doesn't end it.
fn behind_attributes(text: &str) -> &str {
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(['=', '>']) {
        if rest.get(before.len()..).is_some_and(|from| from.starts_with('>')) {
            return behind;
        }
        rest = behind.trim_start();
        for quote in ['"', '\''] {
            if let Some(value) = rest.strip_prefix(quote) {
                rest = value.split_once(quote).map_or("", |(_, behind)| behind);
                break;
            }
        }
    }
    ""
}

/// The text after the end of the element `name`, whose content is dropped.
fn behind_element<'a>(text: &'a str, name: &str) -> &'a str {
    let ends = text.match_indices("</").find_map(|(at, mark)| {
        let named = text.get(at.saturating_add(mark.len())..)?;
        let attributes = named.get(name.len()..)?;
        named.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name)).then_some(attributes)
    });
    ends.map_or("", behind_attributes)
}

/// Whether the element's content is not displayed text.
fn is_silent(name: &str) -> bool {
    matches!(name, "script" | "style" | "noscript" | "iframe" | "noembed" | "noframes" | "xmp")
}

/// Whether a `<` followed by `rest`, which begins with a letter, begins a tag. An unknown element name is unescaped
/// text: `Rc<T>`.
fn begins_tag(rest: &str) -> bool {
    let end = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '-' && character != ':');
    let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default().to_ascii_lowercase();
    name.contains(['-', ':']) || ELEMENTS.binary_search(&name.as_str()).is_ok()
}

/// The elements of HTML, including obsolete ones, and the root elements of SVG and MathML; ascending.
const ELEMENTS: &[&str] = &[
    "a",
    "abbr",
    "acronym",
    "address",
    "applet",
    "area",
    "article",
    "aside",
    "audio",
    "b",
    "base",
    "basefont",
    "bdi",
    "bdo",
    "bgsound",
    "big",
    "blink",
    "blockquote",
    "body",
    "br",
    "button",
    "canvas",
    "caption",
    "center",
    "cite",
    "code",
    "col",
    "colgroup",
    "command",
    "content",
    "data",
    "datalist",
    "dd",
    "del",
    "details",
    "dfn",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "em",
    "embed",
    "fieldset",
    "figcaption",
    "figure",
    "font",
    "footer",
    "form",
    "frame",
    "frameset",
    "g",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hgroup",
    "hr",
    "html",
    "i",
    "iframe",
    "image",
    "img",
    "input",
    "ins",
    "isindex",
    "kbd",
    "keygen",
    "label",
    "legend",
    "li",
    "link",
    "listing",
    "main",
    "map",
    "mark",
    "marquee",
    "math",
    "menu",
    "menuitem",
    "meta",
    "meter",
    "nav",
    "nobr",
    "noembed",
    "noframes",
    "noscript",
    "object",
    "ol",
    "optgroup",
    "option",
    "output",
    "p",
    "param",
    "picture",
    "plaintext",
    "portal",
    "pre",
    "progress",
    "q",
    "rb",
    "rp",
    "rt",
    "rtc",
    "ruby",
    "s",
    "samp",
    "script",
    "search",
    "section",
    "select",
    "shadow",
    "slot",
    "small",
    "source",
    "spacer",
    "span",
    "strike",
    "strong",
    "style",
    "sub",
    "summary",
    "sup",
    "svg",
    "table",
    "tbody",
    "td",
    "template",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "time",
    "title",
    "tr",
    "track",
    "tt",
    "u",
    "ul",
    "use",
    "var",
    "video",
    "wbr",
    "xmp",
];

/// Whether the element separates the words before and after it.
fn parts_words(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "blockquote"
            | "br"
            | "dd"
            | "div"
            | "dl"
            | "dt"
            | "figure"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "hr"
            | "li"
            | "ol"
            | "option"
            | "p"
            | "pre"
            | "section"
            | "table"
            | "td"
            | "th"
            | "tr"
            | "ul"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_and_entities_are_decoded_once() {
        let cases = [
            ("<b>own</b>ership &amp; borrowing", "ownership & borrowing"),
            ("a<br>b<p>c</p>d", "a b c d"),
            ("&lt;script&gt;alert(1)&lt;/script&gt;", "<script>alert(1)</script>"),
            ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),
            ("1 < 2 && 3 > 2", "1 < 2 && 3 > 2"),
            ("&#x41;&#66;&eacute;&nbsp;&hellip;&notit;", "ABé …¬it;"),
            ("caf&eacute", "café"),
            ("a<!-- comment <b> -->b<?php x ?>c<![CDATA[d]]>e", "abce"),
            ("a<script>var b = '<p>c</p>';</script>d", "ad"),
            ("a<style>b</style>c<SCRIPT >x</sCript >d", "acd"),
            ("a<script>b", "a"),
            ("a<img src=x onerror='alert(\">\")'>b<svg/onload=x>c", "abc"),
            ("a <b unfinished", "a"),
            (
                "Rc&lt;T&gt;, Vec<String>, HashMap<K, V> and <i>Box</i><dyn Error>",
                "Rc<T>, Vec<String>, HashMap<K, V> and Box<dyn Error>",
            ),
            ("a<x-b>c</x-b>d<o:p>e", "acde"),
            ("\u{202e}a&#x202e;&#0;b&#27;", "a\u{fffd}b"),
        ];
        for (html, expected) in cases {
            assert_eq!(stripped(html, 100), expected, "{html}");
        }
    }

    #[test]
    fn elements_are_in_order_to_be_found() {
        assert!(ELEMENTS.is_sorted());
    }

    #[test]
    fn a_text_is_cut_whatever_it_is_made_of() {
        assert_eq!(stripped("所有権&amp;", 2), "所有");
        assert_eq!(stripped(&"<b a=1>x".repeat(100_000), 10), "x".repeat(10));
        assert_eq!(stripped(&"<b>".repeat(100_000), 10), "");
        assert_eq!(stripped(&"</script>".repeat(100_000), 10), "");
    }
}
