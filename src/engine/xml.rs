//! Walks over an untrusted XML document that contains only elements and text.
//!
//! A document type is rejected, and with it all entities except XML's five predefined ones and character references.
//! So nothing is fetched and no entity expands. Depth and attributes per element are capped, and in a page the number
//! of elements; the caller caps the length. Only UTF-8 is accepted, whatever encoding the document declares.
//! Otherwise a later reader could interpret the checked bytes differently.

/// Largest depth of elements.
pub(super) const MAX_DEPTH: usize = 32;
/// Largest number of attributes of one element.
pub(super) const MAX_ATTRIBUTES: usize = 32;

/// Largest number of tags, comments and the like in a document that is parsed into a tree.
#[cfg(any(test, feature = "browser"))]
const MAX_PIECES: usize = 16 * 1024;

/// Why a document is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// It is no well-formed XML document.
    #[error("the document is not well-formed XML")]
    Malformed,
    /// It is not in UTF-8, or declares another encoding.
    #[error("the document is not UTF-8")]
    Encoding,
    /// It has a document type or a custom entity.
    #[error("the document has a document type or custom entities, which are not supported")]
    Entities,
    /// Its elements are too deep, or have too many attributes.
    #[error("the document has elements deeper than {MAX_DEPTH} or with more than {MAX_ATTRIBUTES} attributes")]
    TooDeep,
    /// It has too many elements for a tree.
    #[error("the document has too many elements")]
    TooMany,
}

/// An event of a walk.
pub(super) enum Piece<'a> {
    /// An element begins.
    Open {
        /// The URI of its namespace, empty if it has none.
        namespace: &'a str,
        /// Its local name.
        name: &'a str,
        /// Its attributes.
        attributes: Attributes<'a>,
    },
    /// Text within the innermost open element; one text may be split into pieces.
    Text(&'a str),
    /// The innermost open element ends.
    Close,
}

/// The attributes of an element; the function returns the value of a name without prefix.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Attributes<'_> {
    /// The value of `name`, which has no prefix.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}

/// Rejects a document that would take long to parse into a tree. It reads each byte once, and recognises tags as such
/// a parser would, up to the first error in the XML.
///
/// # Errors
/// When it has too many elements, elements too deep, an element with too many attributes, or no end.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(
    all(feature = "native", not(test)),
    allow(dead_code, reason = "used by pages only; compiled here for the lints")
)]
pub(super) fn check_extent(document: &str) -> Result<(), XmlError> {
    fn after<'a>(text: &'a str, end: &str) -> Result<&'a str, XmlError> {
        text.split_once(end).map(|(_, rest)| rest).ok_or(XmlError::Malformed)
    }
    let (mut rest, mut pieces, mut depth) = (document, 0_usize, 0_usize);
    while let Some((_, piece)) = rest.split_once('<') {
        pieces = pieces.saturating_add(1);
        if pieces > MAX_PIECES {
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
            if depth > MAX_DEPTH {
                return Err(XmlError::TooDeep);
            }
            depth = depth.saturating_sub(usize::from(is_empty));
            rest
        };
    }
    Ok(())
}

/// Whether the element with the tag at the beginning of `text` is empty, and the text after the tag.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(
    all(feature = "native", not(test)),
    allow(dead_code, reason = "used by pages only; compiled here for the lints")
)]
fn after_tag(text: &str) -> Result<(bool, &str), XmlError> {
    let (mut attributes, mut quote, mut last) = (0_usize, None, b' ');
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'=') => {
                attributes = attributes.saturating_add(1);
                if attributes > MAX_ATTRIBUTES {
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
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MAX_ATTRIBUTES))), Ok(()));
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MAX_ATTRIBUTES + 1))), Err(XmlError::TooDeep));
        let many = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count));
        assert_eq!(check_extent(&many(MAX_PIECES - 2)), Ok(()));
        assert_eq!(check_extent(&many(MAX_PIECES - 1)), Err(XmlError::TooMany));
        let deep = |count: usize| "<a>".repeat(count) + &"</a>".repeat(count);
        assert_eq!(check_extent(&deep(MAX_DEPTH)), Ok(()));
        assert_eq!(check_extent(&deep(MAX_DEPTH + 1)), Err(XmlError::TooDeep));
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
