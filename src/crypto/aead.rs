//! The AEAD of layers and payloads: ChaCha20-Poly1305 (RFC 8439), in place, without associated data.
//!
//! Native nodes use AWS-LC's assembly, which selects AVX-512, AVX2 or NEON at run time. All other builds use portable
//! code. The assembly takes at most a third of the portable code's time for each cell. Sealing and opening cells is
//! most of a relay's computation. A test checks that the assembly and the portable code give the same bytes.

pub(crate) const TAG_LEN: usize = 16;
pub(crate) const NONCE_LEN: usize = 12;

#[cfg(feature = "native")]
pub(crate) use native::AeadKey;
#[cfg(not(feature = "native"))]
pub(crate) use portable::AeadKey;

/// The tag is wrong, or the input is shorter than a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidTag;

#[cfg(feature = "native")]
pub(super) mod native {
    use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    use super::{InvalidTag, NONCE_LEN, TAG_LEN};

    /// A key; AWS-LC erases it when it is dropped.
    pub(crate) struct AeadKey(LessSafeKey);

    impl AeadKey {
        pub(crate) fn new(key: &[u8; 32]) -> Self {
            #[expect(clippy::expect_used, reason = "fails for other lengths only")]
            Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("32 bytes")))
        }

        /// Encrypts `sealed` except its last 16 bytes, and writes the tag to these.
        pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], sealed: &mut [u8]) -> Result<(), InvalidTag> {
            let (text, tag_place) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(InvalidTag)?;
            let tag = self
                .0
                .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), text)
                .map_err(|_| InvalidTag)?;
            tag_place.copy_from_slice(tag.as_ref());
            Ok(())
        }

        /// Checks the tag in the last 16 bytes of `sealed` and decrypts the rest. Fills `sealed` with zeros if the
        /// tag is wrong.
        pub(crate) fn open(&self, nonce: [u8; NONCE_LEN], sealed: &mut [u8]) -> Result<(), InvalidTag> {
            match self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), sealed) {
                Ok(_) => Ok(()),
                Err(_) => {
                    sealed.fill(0);
                    Err(InvalidTag)
                }
            }
        }
    }
}

#[cfg(any(not(feature = "native"), test))]
pub(super) mod portable {
    use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Tag};

    use super::{InvalidTag, NONCE_LEN, TAG_LEN};

    /// A key, erased when it is dropped.
    pub(crate) struct AeadKey(ChaCha20Poly1305);

    impl AeadKey {
        pub(crate) fn new(key: &[u8; 32]) -> Self {
            Self(ChaCha20Poly1305::new(key.into()))
        }

        /// Encrypts `sealed` except its last 16 bytes, and writes the tag to these.
        pub(crate) fn seal(&self, nonce: [u8; NONCE_LEN], sealed: &mut [u8]) -> Result<(), InvalidTag> {
            let (text, tag_place) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(InvalidTag)?;
            *tag_place = self.0.encrypt_inout_detached(&nonce.into(), &[], text.into()).map_err(|_| InvalidTag)?.into();
            Ok(())
        }

        /// Checks the tag in the last 16 bytes of `sealed` and decrypts the rest. Fills `sealed` with zeros if the
        /// tag is wrong.
        pub(crate) fn open(&self, nonce: [u8; NONCE_LEN], sealed: &mut [u8]) -> Result<(), InvalidTag> {
            let (text, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(InvalidTag)?;
            let opened = self.0.decrypt_inout_detached(&nonce.into(), &[], text.into(), &Tag::from(*tag));
            if opened.is_err() {
                sealed.fill(0);
            }
            opened.map_err(|_| InvalidTag)
        }
    }
}
