//! Events and limits of a walk over an untrusted XML document.
//!
//! A document type is rejected, and with it all entities except XML's five predefined ones and character references.
//! Therefore nothing is fetched, and no entity expands. Depth and attributes of an element are capped; in a page, the
//! number of tags is capped too. The caller caps the length. Only UTF-8 is accepted, also as the declared encoding.
//! Otherwise another parser could interpret the checked bytes differently.

/// Maximum depth of elements.
pub(super) const MAX_DEPTH: usize = 32;
/// Maximum attributes of one element.
pub(super) const MAX_ATTRIBUTES: usize = 32;

/// Maximum tags, comments, CDATA sections and processing instructions of a document that is parsed into a tree.
#[cfg(any(test, feature = "browser"))]
const MAX_MARKUP: usize = 16 * 1024;

/// The reason why a document is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// The document is not well-formed.
    #[error("the document is not well-formed XML")]
    Malformed,
    /// The document is not UTF-8, or declares another encoding.
    #[error("the document is not UTF-8")]
    Encoding,
    /// The document has a document type or a custom entity.
    #[error("the document has a document type or custom entities, which are not supported")]
    Entities,
    /// An element is too deep, or has too many attributes.
    #[error("the document has elements deeper than {MAX_DEPTH} or with more than {MAX_ATTRIBUTES} attributes")]
    TooDeep,
    /// The document has too many tags, comments and other markup for a tree.
    #[error("the document has too many elements, comments or instructions")]
    TooMany,
}

/// An event of a walk.
pub(super) enum XmlEvent<'a> {
    /// An element begins.
    Open {
        /// The URI of the element's namespace, empty if there is none.
        namespace: &'a str,
        /// The local name.
        name: &'a str,
        /// The attributes.
        attributes: Attributes<'a>,
    },
    /// Text within the innermost open element. A text may be split into several events.
    Text(&'a str),
    /// The innermost open element ends.
    Close,
}

/// The attributes of an element, as a function from a name without prefix to the value.
#[derive(Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a dyn Fn(&str) -> Option<String>);

impl Attributes<'_> {
    /// The value of the attribute `name` without prefix.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }
}

/// Rejects a document that would take long to parse into a tree. Scans each byte once, and recognises the same tags as
/// a parser, up to the first error in the XML.
///
/// # Errors
/// When the document is truncated, has too much markup, or has an element that is too deep or has too many attributes.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(
    all(feature = "native", not(test)),
    allow(dead_code, reason = "used by pages only; compiled here for the lints")
)]
pub(super) fn check_extent(document: &str) -> Result<(), XmlError> {
    fn after<'a>(text: &'a str, end: &str) -> Result<&'a str, XmlError> {
        text.split_once(end).map(|(_, rest)| rest).ok_or(XmlError::Malformed)
    }
    let (mut rest, mut count, mut depth) = (document, 0_usize, 0_usize);
    while let Some((_, markup)) = rest.split_once('<') {
        count = count.saturating_add(1);
        if count > MAX_MARKUP {
            return Err(XmlError::TooMany);
        }
        rest = if let Some(comment) = markup.strip_prefix("!--") {
            after(comment, "-->")?
        } else if let Some(text) = markup.strip_prefix("![CDATA[") {
            after(text, "]]>")?
        } else if let Some(instruction) = markup.strip_prefix('?') {
            after(instruction, "?>")?
        } else if let Some(close) = markup.strip_prefix('/') {
            depth = depth.saturating_sub(1);
            after(close, ">")?
        } else {
            let (is_empty, rest) = after_tag(markup)?;
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

/// Scans the tag at the beginning of `text`. Returns whether the element is empty, and the text after the tag.
#[cfg(any(test, feature = "browser"))]
#[cfg_attr(
    all(feature = "native", not(test)),
    allow(dead_code, reason = "used by pages only; compiled here for the lints")
)]
fn after_tag(text: &str) -> Result<(bool, &str), XmlError> {
    let (mut attributes, mut quote, mut last) = (0_usize, None, b' ');
    for (position, byte) in text.bytes().enumerate() {
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
            (None, b'>') => return Ok((last == b'/', text.get(position.saturating_add(1)..).unwrap_or_default())),
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
    fn a_document_that_would_take_long_to_parse_is_refused() {
        let wide = |count| (0..count).map(|number| format!(" a{number}='=>'")).collect::<String>();
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MAX_ATTRIBUTES))), Ok(()));
        assert_eq!(check_extent(&format!("<a><b{}/></a>", wide(MAX_ATTRIBUTES + 1))), Err(XmlError::TooDeep));
        let many = |count: usize| format!("<a>{}</a>", "<b/>".repeat(count));
        assert_eq!(check_extent(&many(MAX_MARKUP - 2)), Ok(()));
        assert_eq!(check_extent(&many(MAX_MARKUP - 1)), Err(XmlError::TooMany));
        let deep = |count: usize| "<a>".repeat(count) + &"</a>".repeat(count);
        assert_eq!(check_extent(&deep(MAX_DEPTH)), Ok(()));
        assert_eq!(check_extent(&deep(MAX_DEPTH + 1)), Err(XmlError::TooDeep));
        for truncated in ["<a", "<a b='>", "<!-- <a>", "<![CDATA[<a>", "<?a >", "<a></a"] {
            assert_eq!(check_extent(truncated), Err(XmlError::Malformed), "{truncated}");
        }
    }

    #[test]
    fn tags_within_comments_and_values_do_not_count() {
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
