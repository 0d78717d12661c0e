//! A node in a web page: the counterpart of `node` and `io`.
//!
//! This module has the loop that joins a core with the browser's data channels ([`drive`]), documents from
//! directories ([`directory`]) and from the browser's storage ([`store`]), and the exports for pages ([`exports`]).
//! One thread, no locks; the browser's callbacks and timers only wake the loop. `web/src/umbel.ts` wraps the exports
//! for pages and other programs. The wrapper also has the parts that only pages need: storage, locks between tabs,
//! visibility, power.
//!
//! The modules below name their specifications. Threats addressed: malicious directories (a document needs valid
//! signatures, and its length and time are capped), and storage that is denied or corrupted (the page continues
//! without it and reports the failure).

mod client;
mod clock;
mod directory;
mod drive;
mod exports;
mod failure;
mod follow;
mod js;
mod open_streams;
mod page;
mod request;
mod search;
mod store;
mod stream;
mod sync;
mod volunteer;
