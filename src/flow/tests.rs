//! Tests of tags and windows. Tests of the window over simulated paths are in `lines`.

#[cfg(not(target_arch = "wasm32"))]
mod lines;
#[cfg(not(target_arch = "wasm32"))]
mod path;

use super::*;
use crate::base::Instant;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[test]
fn only_the_oldest_outstanding_tag_is_accepted() {
    let mut window = CongestionWindow::new(&FlowParameters::default());
    assert_eq!(window.handle_sendme(Instant::START, &[0; 16]), Err(FlowError::WrongTag));
    for tag in [[1; 16], [2; 16]] {
        while !window.needs_tag() {
            window.handle_sent(Instant::START, None);
        }
        window.handle_sent(Instant::START, Some(tag));
    }
    assert_eq!(window.in_flight(), 64);
    assert_eq!(window.handle_sendme(Instant::START, &[1; 16]), Ok(()));
    assert_eq!(window.in_flight(), 32);
    assert_eq!(window.handle_sendme(Instant::START, &[1; 16]), Err(FlowError::WrongTag));
}

#[test]
fn a_full_window_always_holds_a_tag() {
    let invalid =
        FlowParameters { tag_interval: 1000, window_min: 0, window_initial: 1, window_max: 0, ..Default::default() };
    let mut window = CongestionWindow::new(&invalid);
    while window.has_room() {
        let tag = window.needs_tag().then_some([7; 16]);
        window.handle_sent(Instant::START, tag);
    }
    assert!(window.oldest_tag_at().is_some());
}

#[test]
fn tags_are_echoed_in_order_and_bounded() {
    let mut acknowledger = Acknowledger::default();
    for number in 0..MAX_UNSENT_TAGS {
        acknowledger.handle_tag([u8::try_from(number % 256).unwrap(); 16]).unwrap();
    }
    assert_eq!(acknowledger.handle_tag([0; 16]), Err(FlowError::TooManyTags));
    assert_eq!(acknowledger.poll_tag(), Some([0; 16]));
    assert_eq!(acknowledger.poll_tag(), Some([1; 16]));
}
