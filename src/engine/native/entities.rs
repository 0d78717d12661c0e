//! Decoding of HTML entities by html5ever's tokenizer.

use core::cell::RefCell;

use html5ever::{
    tendril::StrTendril,
    tokenizer::{BufferQueue, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts},
};

/// `text` with decoded entities. `text` has no tags.
pub(in crate::engine) fn decoded(text: &str) -> String {
    let tokenizer = Tokenizer::new(Characters::default(), TokenizerOpts::default());
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(text));
    // The tokenizer pauses only at the request of its sink. This sink sends no requests.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    tokenizer.sink.0.take()
}

/// Collects the decoded characters.
#[derive(Default)]
struct Characters(RefCell<String>);

impl TokenSink for Characters {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        if let Token::CharacterTokens(characters) = token {
            self.0.borrow_mut().push_str(&characters);
        }
        TokenSinkResult::Continue
    }
}
