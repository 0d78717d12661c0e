//! A node in a page: what `node` and `io` are to a process.
//!
//! Owns the loop that joins a core with the browser's data channels ([`drive`]), what is fetched from directories
//! ([`directory`]) and kept in the browser's storage ([`store`]), and what pages may call ([`exports`]). One thread, no
//! locks; the browser's callbacks and timers only wake the loop. `web/src/umbel.ts` wraps the exports for pages and other
//! people's programs, and holds what is of pages alone: the storage itself, locks between tabs, visibility, power.
//!
//! Governed by what the parts below are. Threats addressed: whoever serves documents (they count by signatures only, with bounded
//! length and time), and storage that is denied or holds something else (the page goes on without, and says so).

mod client;
mod clock;
mod directory;
mod drive;
mod exports;
mod failure;
mod follow;
mod js;
mod page;
mod request;
mod search;
mod slot;
mod store;
mod stream;
mod volunteer;
