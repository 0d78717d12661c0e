//! HTTP over byte streams: HTTP/1.1, Binary HTTP, and the header fields and refusals of delegated requests.

pub(crate) mod binary;
pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod http1;
pub(crate) mod refusal;
