//! Bodies of requests and responses that an HTTP exchange sends.

use std::error::Error;

use hyper::body::Body;

/// Any error of a body.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// A body that an HTTP exchange sends: any [`Body`] that can move between tasks with its data.
pub trait OutgoingBody: Body<Data: Send, Error: Into<BodyError>> + Send + 'static {}

impl<B: Body<Data: Send, Error: Into<BodyError>> + Send + 'static> OutgoingBody for B {}
