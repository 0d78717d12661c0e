//! HTTP over byte streams: HTTP/1.1 exchanges, Binary HTTP, and the header fields and refusals that both ends of a
//! delegated request handle.

pub(crate) mod binary;
pub(crate) mod body;
pub(crate) mod fields;
pub(crate) mod http1;
pub(crate) mod refusal;
