//! HTTP: exchanges over byte streams in HTTP/1.1 and Binary HTTP, the header fields and refusals of delegated requests,
//! and parts common to the HTTP clients and servers of a node.

pub(crate) mod binary;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod content_coding;
pub(crate) mod fields;
pub(crate) mod http1;
pub(crate) mod refusal;
