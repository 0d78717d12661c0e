//! Errors of a page, each with a kind for programs and a sentence for the user.

use js_sys::{Object, Reflect};
use wasm_bindgen::JsValue;

use crate::{client::StreamFailure, path::PathError, wire::EndReason};

/// The kind of a failure; the names are values of `UmbelErrorKind` in `web/src/umbel/failure.ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The browser lacks or disables WebRTC or another required feature.
    NoWebrtc,
    /// This device's clock and the network's clock disagree.
    Clock,
    /// The network's consensus is invalid or too old.
    Consensus,
    /// Directories or guards can't be reached, a directory refused the request, no circuit could be built, or the
    /// network has too few relays.
    Network,
    /// The exit or the circuit failed, the answer exceeded its time limit or length, or it is invalid.
    Exit,
    /// A site can't be found or reached, or its stream ended early.
    Target,
    /// No exit offers the search engine, or the engine failed or blocked the exits.
    Engine,
    /// No exit permits or offers the request, an exit refused it, or a limit is reached.
    Refused,
    /// The client has been closed.
    Closed,
    /// The input is invalid.
    BadInput,
}

impl FailureKind {
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

/// A failure of a page's client or volunteer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageFailure {
    pub(super) kind: FailureKind,
    pub(super) sentence: String,
}

impl PageFailure {
    /// A failure of `kind`, with `message` as a sentence: a capital first, a full stop last.
    pub(super) fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        let mut letters = message.as_ref().chars();
        let mut sentence: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
        sentence.extend(letters);
        if !sentence.ends_with(['.', '?', '!']) {
            sentence.push('.');
        }
        Self { kind, sentence }
    }

    /// The client has been closed.
    pub(super) fn closed() -> Self {
        Self::new(FailureKind::Closed, "this client has been closed")
    }
}

impl From<StreamFailure> for PageFailure {
    /// The failure of a page's request whose circuit or stream failed.
    fn from(failure: StreamFailure) -> Self {
        let kind = match failure {
            StreamFailure::NoConsensus
            | StreamFailure::GuardUnreachable
            | StreamFailure::NoCircuit
            | StreamFailure::NoPath(PathError::NoGuard | PathError::TooFewRelays) => FailureKind::Network,
            StreamFailure::ConsensusExpired => FailureKind::Consensus,
            StreamFailure::NoPath(PathError::NoExit | PathError::NotOffered | PathError::OnlyRelatedExits)
            | StreamFailure::LimitReached
            | StreamFailure::NotPublic
            | StreamFailure::Ended(EndReason::Policy) => FailureKind::Refused,
            StreamFailure::Ended(
                EndReason::NotFound | EndReason::Refused | EndReason::Unreachable | EndReason::TimedOut,
            ) => FailureKind::Target,
            StreamFailure::Ended(_) => FailureKind::Exit,
        };
        Self::new(kind, failure.to_string())
    }
}

impl From<PageFailure> for JsValue {
    fn from(failure: PageFailure) -> Self {
        object(&[("kind", failure.kind.name().into()), ("message", failure.sentence.into())])
    }
}

/// A plain JavaScript object with these entries.
pub(super) fn object(entries: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    for (key, value) in entries {
        // `set` can't fail for a plain object.
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
    fn each_stream_failure_has_a_kind_and_a_distinct_sentence() {
        let cases = [
            (StreamFailure::NoConsensus, FailureKind::Network),
            (StreamFailure::ConsensusExpired, FailureKind::Consensus),
            (StreamFailure::NoPath(PathError::NoGuard), FailureKind::Network),
            (StreamFailure::NoPath(PathError::TooFewRelays), FailureKind::Network),
            (StreamFailure::NoPath(PathError::NoExit), FailureKind::Refused),
            (StreamFailure::NoPath(PathError::NotOffered), FailureKind::Refused),
            (StreamFailure::NoPath(PathError::OnlyRelatedExits), FailureKind::Refused),
            (StreamFailure::GuardUnreachable, FailureKind::Network),
            (StreamFailure::NoCircuit, FailureKind::Network),
            (StreamFailure::LimitReached, FailureKind::Refused),
            (StreamFailure::NotPublic, FailureKind::Refused),
            (StreamFailure::Ended(EndReason::NotFound), FailureKind::Target),
        ];
        let failures = cases.map(|(reason, kind)| {
            let failure = PageFailure::from(reason);
            assert_eq!(failure.kind, kind, "{reason:?}");
            failure.sentence
        });
        for (at, sentence) in failures.iter().enumerate() {
            assert!(sentence.ends_with('.') && !failures[..at].contains(sentence), "{sentence}");
        }
    }
}
