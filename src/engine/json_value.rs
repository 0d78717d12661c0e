//! The interface to JSON values, implemented for the parser of native nodes and for that of pages.

/// A JSON value.
pub(super) trait Json: Sized {
    /// The value at a JSON pointer (RFC 6901).
    fn at(&self, pointer: &str) -> Option<Self>;
    /// The elements of an array.
    fn items(&self) -> Option<Vec<Self>>;
    /// The text of a string.
    fn text(&self) -> Option<String>;
    /// The value of a number.
    fn number(&self) -> Option<f64>;
    /// The text of a string or number.
    fn scalar_text(&self) -> Option<String>;
}
