//! Padded frames of delegated messages, which reveal only the size bucket of a message's length.
//!
//! A frame is the message's length (4 bytes, big-endian), the message, and zeros up to the size of the smallest bucket
//! that holds length and message (`proto/09-delegated.md` §2).

/// Bytes of the length field before a message.
pub const HEADER_LEN: usize = 4;
/// Bucket sizes of a framed query, in bytes.
pub const REQUEST_BUCKETS: &[usize] = &[1 << 10, 4 << 10];
/// Bucket sizes of a framed answer, in bytes.
pub const RESPONSE_BUCKETS: &[usize] = &[8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10];

/// Why a frame is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message exceeds the largest bucket.
    #[error("the message is longer than the largest frame")]
    TooLong,
    /// The frame's length isn't the bucket size for its message.
    #[error("the frame's length is not the bucket size for its message")]
    Length,
    /// The padding has bytes other than zero.
    #[error("the frame's padding is not zero")]
    Padding,
}

/// Pads `message` into the smallest of `buckets` that holds it.
///
/// # Errors
/// [`FrameError::TooLong`] if `message` exceeds the largest bucket.
pub fn encode(message: &[u8], buckets: &[usize]) -> Result<Vec<u8>, FrameError> {
    let length = u32::try_from(message.len()).map_err(|_| FrameError::TooLong)?;
    let size = bucket(message.len(), buckets).ok_or(FrameError::TooLong)?;
    let mut frame = Vec::with_capacity(size);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    frame.resize(size, 0);
    Ok(frame)
}

/// The message in a complete `frame`.
///
/// # Errors
/// When the frame's length isn't the bucket size for its message, or the padding isn't zeros.
pub fn decode<'a>(frame: &'a [u8], buckets: &[usize]) -> Result<&'a [u8], FrameError> {
    let (header, rest) = frame.split_first_chunk::<HEADER_LEN>().ok_or(FrameError::Length)?;
    let length = usize::try_from(u32::from_be_bytes(*header)).map_err(|_| FrameError::TooLong)?;
    if bucket(length, buckets).ok_or(FrameError::TooLong)? != frame.len() {
        return Err(FrameError::Length);
    }
    let (message, padding) = rest.split_at_checked(length).ok_or(FrameError::Length)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(FrameError::Padding);
    }
    Ok(message)
}

/// The maximum length of a frame of one of `buckets`, in bytes.
#[must_use]
pub fn max_frame_len(buckets: &[usize]) -> usize {
    buckets.last().copied().unwrap_or(0)
}

/// The smallest of `buckets` that holds the length field and a message of `length` bytes.
fn bucket(length: usize, buckets: &[usize]) -> Option<usize> {
    let needed = length.checked_add(HEADER_LEN)?;
    buckets.iter().copied().find(|size| *size >= needed)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_of_one_bucket_have_frames_of_one_length() {
        let lengths: Vec<_> =
            [0, 1, 1020].map(|length| encode(&vec![1; length], REQUEST_BUCKETS).unwrap().len()).to_vec();
        assert_eq!(lengths, [1024; 3]);
        assert_eq!(encode(&[1; 1021], REQUEST_BUCKETS).unwrap().len(), 4096);
        assert_eq!(encode(&[1; 4093], REQUEST_BUCKETS), Err(FrameError::TooLong));
    }

    #[test]
    fn padding_other_than_zeros_and_larger_buckets_are_refused() {
        let mut frame = encode(b"query", REQUEST_BUCKETS).unwrap();
        assert_eq!(decode(&frame, REQUEST_BUCKETS), Ok(&b"query"[..]));
        *frame.last_mut().unwrap() = 1;
        assert_eq!(decode(&frame, REQUEST_BUCKETS), Err(FrameError::Padding));
        *frame.last_mut().unwrap() = 0;
        frame.resize(4096, 0);
        assert_eq!(decode(&frame, REQUEST_BUCKETS), Err(FrameError::Length));
    }

    proptest! {
        #[test]
        fn a_decoded_message_equals_the_framed_one(message in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let frame = encode(&message, RESPONSE_BUCKETS).unwrap();
            prop_assert_eq!(decode(&frame, RESPONSE_BUCKETS), Ok(&message[..]));
        }

        #[test]
        fn the_decoder_does_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = decode(&bytes, REQUEST_BUCKETS);
        }
    }
}
