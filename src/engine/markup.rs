//! HTML from strangers as plain text.
//!
//! The tokenizer alone runs over it, in one pass and without a tree, so nothing a text holds makes it slow or large. Its
//! entities are decoded once; tags, comments, scripts and styles are gone.

use core::cell::{Cell, RefCell};

use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts, states::RawKind,
    },
};

use crate::delegated::text;

/// Bytes of a text that are looked at for each character that is wanted: tags take room, too.
const BYTES_PER_CHAR: usize = 16;

/// At most `max_chars` characters of the text in `html`, fit to be shown.
pub(super) fn stripped(html: &str, max_chars: usize) -> String {
    let html = beginning(html, max_chars.saturating_mul(BYTES_PER_CHAR));
    if !html.contains(['<', '&']) {
        return text::plain(html, max_chars);
    }
    let tokenizer = Tokenizer::new(Words::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    for (index, piece) in html.split('<').enumerate() {
        if index > 0 {
            input.push_back(StrTendril::from_slice(if begins_tag(piece) { "<" } else { "&lt;" }));
        }
        input.push_back(StrTendril::from_slice(piece));
    }
    // It pauses for scripts that are to be run, which this sink never asks for.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    text::plain(&tokenizer.sink.text.borrow(), max_chars)
}

/// At most `max_bytes` of `html`, without the piece of a tag that may be left at its end.
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

/// The words among the tokens.
#[derive(Default)]
struct Words {
    text: RefCell<String>,
    /// Within an element whose text is none.
    silent: Cell<bool>,
}

impl TokenSink for Words {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(characters) if !self.silent.get() => self.text.borrow_mut().push_str(&characters),
            Token::TagToken(tag) => return self.tag(&tag),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

impl Words {
    fn tag(&self, tag: &Tag) -> TokenSinkResult<()> {
        let raw = match &*tag.name {
            "script" => Some(RawKind::ScriptData),
            "style" | "noscript" | "iframe" | "noembed" | "noframes" | "xmp" => Some(RawKind::Rawtext),
            _ => None,
        };
        if parts_words(&tag.name) {
            self.text.borrow_mut().push(' ');
        }
        match (raw, tag.kind) {
            (Some(kind), TagKind::StartTag) => {
                self.silent.set(true);
                TokenSinkResult::RawData(kind)
            }
            (Some(_), TagKind::EndTag) => {
                self.silent.set(false);
                TokenSinkResult::Continue
            }
            (None, _) => TokenSinkResult::Continue,
        }
    }
}

/// Whether a `<` with `rest` behind it begins a tag, comment or the like. One of no element's name is text that nobody
/// escaped: `Rc<T>`.
fn begins_tag(rest: &str) -> bool {
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let end = rest.find(|character: char| !character.is_ascii_alphanumeric() && character != '-' && character != ':');
    let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default().to_ascii_lowercase();
    name.is_empty() || name.contains(['-', ':']) || ELEMENTS.binary_search(&name.as_str()).is_ok()
}

/// The elements of HTML, with those it has given up, and those of SVG and MathML that begin one; ascending.
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

/// Whether the element stands apart from the text around it.
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
