//! Bodies of requests and responses that an HTTP exchange sends.

use std::error::Error;

use hyper::body::Body;

/// The error of a body.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// A body that an HTTP exchange sends. Every [`Body`] is one if it and its data can move between tasks.
pub trait OutgoingBody: Body<Data: Send, Error: Into<BodyError>> + Send + 'static {}

impl<B: Body<Data: Send, Error: Into<BodyError>> + Send + 'static> OutgoingBody for B {}
