//! Converts untrusted HTML to plain text.
//!
//! The conversion is one pass without a tree, in time linear in the length. Tags, comments, scripts and styles are
//! removed, and entities are decoded once.

use super::parser::entities::decoded;
use crate::delegated::text;

/// Maximum bytes of input that are converted for each character of output. Tags take a part of the input.
const MAX_BYTES_PER_CHAR: usize = 16;

/// At most `max_chars` characters of the text in `html`, cleaned for display.
pub(super) fn stripped(html: &str, max_chars: usize) -> String {
    let html = beginning(html, max_chars.saturating_mul(MAX_BYTES_PER_CHAR));
    let text = if html.contains('<') { untagged(html) } else { html.to_owned() };
    if text.contains('&') { text::plain(&decoded(&text), max_chars) } else { text::plain(&text, max_chars) }
}

/// At most `max_bytes` of `html`, without a partial tag at the end.
fn beginning(html: &str, max_bytes: usize) -> &str {
    if html.len() <= max_bytes {
        return html;
    }
    let beginning = html.get(..html.floor_char_boundary(max_bytes)).unwrap_or_default();
    match beginning.rsplit_once('<') {
        Some((before, tag)) if !tag.contains('>') => before,
        _ => beginning,
    }
}

/// `html` without tags, comments and the content of some elements. A `<` that begins no tag becomes an entity.
fn untagged(html: &str) -> String {
    let (mut text, mut rest) = (String::with_capacity(html.len()), html);
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        rest = match after_tag(after, &mut text) {
            Some(after) => after,
            None => {
                text.push_str("&lt;");
                after
            }
        };
    }
    text.push_str(rest);
    text
}

/// The text after the tag, comment or declaration whose `<` precedes `rest`. Empty if the tag doesn't end. `None` if
/// that `<` begins neither tag, comment nor declaration. Adds a space to `text` if the element separates words.
fn after_tag<'a>(rest: &'a str, text: &mut String) -> Option<&'a str> {
    let after = |end: &str| rest.split_once(end).map_or("", |(_, after)| after);
    if rest.starts_with("!--") {
        // As in browsers, `<!-->` and `<!--->` are complete comments.
        return Some(after("-->"));
    }
    let (is_end, named) = rest.strip_prefix('/').map_or((false, rest), |named| (true, named));
    let begins_name = named.starts_with(|character: char| character.is_ascii_alphabetic());
    if !begins_name {
        return (is_end || rest.starts_with(['!', '?'])).then(|| after(">"));
    }
    if !begins_tag(named) {
        return None;
    }
    let end = named
        .find(|character: char| character.is_whitespace() || matches!(character, '/' | '>'))
        .unwrap_or(named.len());
    let (name, attributes) = named.split_at_checked(end)?;
    let name = name.to_ascii_lowercase();
    if separates_words(&name) {
        text.push(' ');
    }
    let after = after_attributes(attributes);
    Some(if !is_end && is_hidden(&name) { after_element(after, &name) } else { after })
}

/// The text after the `>` that ends a tag. A `>` in a quoted value doesn't end the tag.
fn after_attributes(text: &str) -> &str {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(['=', '>']) {
        if rest.get(before.len()..).is_some_and(|from| from.starts_with('>')) {
            return after;
        }
        rest = after.trim_start();
        for quote in ['"', '\''] {
            if let Some(value) = rest.strip_prefix(quote) {
                rest = value.split_once(quote).map_or("", |(_, after)| after);
                break;
            }
        }
    }
    ""
}

/// The text after the end tag of the element `name`. Empty if there is no end tag.
fn after_element<'a>(text: &'a str, name: &str) -> &'a str {
    let end_tag = text.match_indices("</").find_map(|(position, mark)| {
        let named = text.get(position.saturating_add(mark.len())..)?;
        let attributes = named.get(name.len()..)?;
        named.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name)).then_some(attributes)
    });
    end_tag.map_or("", after_attributes)
}

/// Whether the content of the element is removed with its tags: browsers hide the content, or it is raw markup (`xmp`).
fn is_hidden(name: &str) -> bool {
    matches!(name, "script" | "style" | "noscript" | "iframe" | "noembed" | "noframes" | "xmp")
}

/// Whether a `<` before `rest`, which begins with a letter, begins a tag. Before an unknown element name, the `<` is
/// unescaped text, such as `Rc<T>`.
fn begins_tag(rest: &str) -> bool {
    let end = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '-' && character != ':');
    let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default().to_ascii_lowercase();
    name.contains(['-', ':']) || ELEMENTS.binary_search(&name.as_str()).is_ok()
}

/// The elements of HTML, including obsolete ones, and a few of SVG and MathML; ascending.
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
fn separates_words(name: &str) -> bool {
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
    fn tags_are_removed_and_entities_are_decoded_once() {
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
    fn element_names_are_sorted_for_binary_search() {
        assert!(ELEMENTS.is_sorted());
    }

    #[test]
    fn long_text_is_truncated() {
        assert_eq!(stripped("所有権&amp;", 2), "所有");
        assert_eq!(stripped(&"<b a=1>x".repeat(100_000), 10), "x".repeat(10));
        assert_eq!(stripped(&"<b>".repeat(100_000), 10), "");
        assert_eq!(stripped(&"</script>".repeat(100_000), 10), "");
    }
}
