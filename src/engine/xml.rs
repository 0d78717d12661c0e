//! XML from strangers: a walk over a document that holds nothing but elements and text.
//!
//! A document type is refused, and with it every entity but the five that XML itself has and characters by number: so nothing
//! is fetched and nothing grows. Depth, and attributes of an element, are capped, and in a page the number of elements; the length is the caller's to cap. Only
//! UTF-8 is read, whatever the document says of itself, or what is checked here could be read as something else later.

pub(super) use super::parser::xml::walk;

/// Elements within each other.
pub(super) const MOST_DEPTH: usize = 32;
/// Attributes of one element.
pub(super) const MOST_ATTRIBUTES: usize = 32;

/// Tags and the like in a document of which a tree is made.
#[cfg(any(test, feature = "browser"))]
const MOST_PIECES: usize = 16 * 1024;

/// Why a document isn't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// It is no XML, or not all of a document.
    #[error("it is no well-formed XML")]
    Malformed,
    /// It says that it is not in UTF-8, or isn't.
    #[error("it is not in UTF-8")]
    Encoding,
    /// It has a document type or an entity.
    #[error("it has a document type or entities of its own, which are not read")]
    Entities,
    /// Elements stand too deep, or have too many attributes.
    #[error("it has elements deeper than {MOST_DEPTH} or with more than {MOST_ATTRIBUTES} attributes")]
    TooDeep,
    /// It has too many elements to make a tree of them.
    #[error("it has more elements than are read")]
    TooMany,
}

/// What a walk meets.
pub(super) enum Piece<'a> {
    /// An element begins.
    Open {
        /// The URI of its namespace, empty if it has none.
        namespace: &'a str,
        /// Its name within that.
        name: &'a str,
        /// Its attributes.
        attributes: Attributes<'a>,
    },
    /// Text within the element that began last and hasn't ended; one text may come in pieces.
    Text(&'a str),
    /// The element that began last and hasn't ended ends.
    Close,
}

/// The attributes of an element: the value of one by its name, which has no prefix.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Attributes<'_> {
    /// The value of `name`, which has no prefix.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}

/// Refuses a document that would keep a parser busy that makes a tree of it first: looks at each byte once, and for tags where such
/// a parser would, up to the first place that is no XML, where it stops.
///
/// # Errors
/// When it has too many elements, too deep, or one with too many attributes, or no end.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(all(feature = "native", not(test)), allow(dead_code, reason = "for pages; here for lints alone"))]
pub(super) fn check_extent(document: &str) -> Result<(), XmlError> {
    fn after<'a>(text: &'a str, end: &str) -> Result<&'a str, XmlError> {
        text.split_once(end).map(|(_, rest)| rest).ok_or(XmlError::Malformed)
    }
    let (mut rest, mut pieces, mut depth) = (document, 0_usize, 0_usize);
    while let Some((_, piece)) = rest.split_once('<') {
        pieces = pieces.saturating_add(1);
        if pieces > MOST_PIECES {
            return Err(XmlError::TooMany);
        }
        rest = if let Some(comment) = piece.strip_prefix("!--") {
            after(comment, "-->")?
        } else if let Some(text) = piece.strip_prefix("![CDATA[") {
            after(text, "]]>")?
        } else if let Some(instruction) = piece.strip_prefix('?') {
            after(instruction, "?>")?
        } else if let Some(close) = piece.strip_prefix('/') {
            depth = depth.saturating_sub(1);
            after(close, ">")?
        } else {
            let (is_empty, rest) = after_tag(piece)?;
            depth = depth.saturating_add(1);
            if depth > MOST_DEPTH {
                return Err(XmlError::TooDeep);
            }
            depth = depth.saturating_sub(usize::from(is_empty));
            rest
        };
    }
    Ok(())
}

/// Whether the element is empty whose tag `text` begins with, and what follows the tag.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(all(feature = "native", not(test)), allow(dead_code, reason = "for pages; here for lints alone"))]
fn after_tag(text: &str) -> Result<(bool, &str), XmlError> {
    let (mut attributes, mut quote, mut last) = (0_usize, None, b' ');
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'=') => {
                attributes = attributes.saturating_add(1);
                if attributes > MOST_ATTRIBUTES {
                    return Err(XmlError::TooDeep);
                }
            }
            (None, b'>') => return Ok((last == b'/', text.get(at.saturating_add(1)..).unwrap_or_default())),
            (None, _) => {}
        }
        last = byte;
    }
    Err(XmlError::Malformed)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn what_would_keep_a_parser_busy_is_found_before_it_is_parsed() {
        let wide = |count| (0..count).map(|number| format!(" a{number}='=>'")).collect::<String>();
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MOST_ATTRIBUTES))), Ok(()));
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MOST_ATTRIBUTES + 1))), Err(XmlError::TooDeep));
        let many = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count));
        assert_eq!(check_extent(&many(MOST_PIECES - 2)), Ok(()));
        assert_eq!(check_extent(&many(MOST_PIECES - 1)), Err(XmlError::TooMany));
        let deep = |count: usize| "<a>".repeat(count) + &"</a>".repeat(count);
        assert_eq!(check_extent(&deep(MOST_DEPTH)), Ok(()));
        assert_eq!(check_extent(&deep(MOST_DEPTH + 1)), Err(XmlError::TooDeep));
        for none in ["<a", "<a b='>", "<!-- <a>", "<![CDATA[<a>", "<?a >", "<a></a"] {
            assert_eq!(check_extent(none), Err(XmlError::Malformed), "{none}");
        }
    }

    #[test]
    fn what_only_looks_like_tags_and_attributes_is_none() {
        let equals = "=".repeat(100);
        for good in [
            format!("<a>{equals}</a>"),
            format!("<a b='{equals}' c=\"{equals}\"/>"),
            format!("<?xml version='1.0'?><!-- <a {equals} --><a><![CDATA[<b {equals}>]]></a>"),
        ] {
            assert_eq!(check_extent(&good), Ok(()), "{good}");
        }
        assert_eq!(check_extent(include_str!("tests/kiwix.xml")), Ok(()));
        assert_eq!(check_extent(""), Ok(()));
    }
}
