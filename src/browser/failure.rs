//! Errors of a page: a kind for programs and a sentence for the user.

use js_sys::{Object, Reflect};
use wasm_bindgen::JsValue;

use crate::{client::StreamFailure, path::PathError, wire::EndReason};

/// The kind of a failure; the names are `UmbelError.kind` of `web/src/umbel.ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The browser has no WebRTC, or it is disabled.
    NoWebrtc,
    /// The clocks of machine and network disagree.
    Clock,
    /// The network's consensus is invalid.
    Consensus,
    /// Directories or relays can't be reached.
    Network,
    /// An exit closed the stream or exceeded the time limit.
    Exit,
    /// A website can't be reached, broke off, or returned no valid answer.
    Target,
    /// The search engine failed.
    Engine,
    /// A relay or directory refused the request.
    Refused,
    /// The client has been closed.
    Closed,
    /// The input is invalid.
    BadInput,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::NoWebrtc => "no-webrtc",
            Self::Clock => "clock",
            Self::Consensus => "consensus",
            Self::Network => "network",
            Self::Exit => "exit",
            Self::Target => "target",
            Self::Engine => "engine",
            Self::Refused => "refused",
            Self::Closed => "closed",
            Self::BadInput => "bad-input",
        }
    }
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) sentence: String,
}

impl Failure {
    /// A failure of `kind`, with `words` as a sentence: a capital first, a full stop last.
    pub(super) fn new(kind: Kind, words: impl AsRef<str>) -> Self {
        let mut letters = words.as_ref().chars();
        let mut sentence: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
        sentence.extend(letters);
        if !sentence.ends_with(['.', '?', '!']) {
            sentence.push('.');
        }
        Self { kind, sentence }
    }

    /// The client has been closed.
    pub(super) fn closed() -> Self {
        Self::new(Kind::Closed, "this client has been closed")
    }
}

impl From<StreamFailure> for Failure {
    /// The failure for a page if there was no circuit or stream.
    fn from(failure: StreamFailure) -> Self {
        let kind = match failure {
            StreamFailure::NoConsensus
            | StreamFailure::GuardUnreachable
            | StreamFailure::NoCircuit
            | StreamFailure::NoPath(PathError::NoGuard | PathError::TooFewRelays) => Kind::Network,
            StreamFailure::ConsensusExpired => Kind::Consensus,
            StreamFailure::NoPath(PathError::NoExit | PathError::NotOffered)
            | StreamFailure::LimitReached
            | StreamFailure::Ended(EndReason::Policy) => Kind::Refused,
            StreamFailure::Ended(
                EndReason::NotFound | EndReason::Refused | EndReason::Unreachable | EndReason::TimedOut,
            ) => Kind::Target,
            StreamFailure::Ended(_) => Kind::Exit,
        };
        Self::new(kind, failure.to_string())
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        object(&[("kind", failure.kind.name().into()), ("message", failure.sentence.into())])
    }
}

/// A plain object.
pub(super) fn object(entries: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (key, value) in entries {
        // It can't fail for a plain object.
        let _ = Reflect::set(&object, &JsValue::from_str(key), value);
    }
    object.into()
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn each_reason_for_having_no_circuit_has_a_kind_and_a_sentence() {
        let cases = [
            (StreamFailure::NoConsensus, Kind::Network),
            (StreamFailure::ConsensusExpired, Kind::Consensus),
            (StreamFailure::NoPath(PathError::NoGuard), Kind::Network),
            (StreamFailure::NoPath(PathError::TooFewRelays), Kind::Network),
            (StreamFailure::NoPath(PathError::NoExit), Kind::Refused),
            (StreamFailure::NoPath(PathError::NotOffered), Kind::Refused),
            (StreamFailure::GuardUnreachable, Kind::Network),
            (StreamFailure::NoCircuit, Kind::Network),
            (StreamFailure::LimitReached, Kind::Refused),
            (StreamFailure::Ended(EndReason::NotFound), Kind::Target),
        ];
        let failures = cases.map(|(reason, kind)| {
            let failure = Failure::from(reason);
            assert_eq!(failure.kind, kind, "{reason:?}");
            failure.sentence
        });
        for (at, sentence) in failures.iter().enumerate() {
            assert!(sentence.ends_with('.') && !failures[..at].contains(sentence), "{sentence}");
        }
    }
}
