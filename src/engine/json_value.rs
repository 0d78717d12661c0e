//! The interface to a JSON value, the same for the parser of a process and that of a page.

/// A JSON value, independent of the parser.
pub(super) trait Json: Sized {
    /// The value at a pointer (RFC 6901).
    fn at(&self, pointer: &str) -> Option<Self>;
    /// The elements, if it is an array.
    fn items(&self) -> Option<Vec<Self>>;
    /// The text, if it is a string.
    fn text(&self) -> Option<String>;
    /// The number, if it is a number.
    fn number(&self) -> Option<f64>;
    /// A string or number as text.
    fn words(&self) -> Option<String>;
}
