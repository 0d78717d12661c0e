//! The text format of secret files: a title, named values, and a checksum over both.
//!
//! ```text
//! umbel identity.key 1
//! secret AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
//! check K5QXG5DF…
//! ```
//!
//! Keys and certificates are in base 64, numbers in decimal. The checksum is the first 26 characters of the SHA-256
//! hash in base 32.

use data_encoding::{BASE32_NOPAD, BASE64};
use zeroize::Zeroizing;

use crate::crypto::sha256;

/// A secret file in memory; zeroized when dropped.
pub(super) struct KeyFile {
    text: Zeroizing<String>,
}

impl KeyFile {
    /// A file with the title of the file `name`, without values.
    pub(super) fn new(name: &str) -> Self {
        Self { text: Zeroizing::new(title(name)) }
    }

    pub(super) fn with_bytes(self, name: &str, bytes: &[u8]) -> Self {
        let value = Zeroizing::new(BASE64.encode(bytes));
        self.with(name, &value)
    }

    pub(super) fn with_number(self, name: &str, number: u64) -> Self {
        self.with(name, &number.to_string())
    }

    fn with(self, name: &str, value: &str) -> Self {
        Self { text: Zeroizing::new([&self.text, name, " ", value, "\n"].concat()) }
    }

    /// The file's text with its checksum.
    pub(super) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new([self.text.as_str(), "check ", &check(&self.text), "\n"].concat())
    }

    /// Parses the output of [`Self::text`] for a file of this name. The error is the reason.
    pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Self, &'static str> {
        let text = core::str::from_utf8(bytes).map_err(|_| "not UTF-8 text")?;
        if !text.starts_with(&title(name)) {
            return Err("another type of file, or empty");
        }
        let (values, found) = text.rsplit_once("check ").ok_or("truncated")?;
        if found.strip_suffix('\n') != Some(&check(values)) {
            return Err("truncated or modified");
        }
        Ok(Self { text: Zeroizing::new(values.to_owned()) })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_ok()
    }

    pub(super) fn bytes(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
        let bytes = BASE64.decode(self.value(name)?.as_bytes());
        bytes.map(Zeroizing::new).map_err(|_| "a value is not base 64")
    }

    pub(super) fn key(&self, name: &str) -> Result<Zeroizing<[u8; 32]>, &'static str> {
        let bytes = self.bytes(name)?;
        <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new).map_err(|_| "a key is not 32 bytes")
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, &'static str> {
        self.value(name)?.parse().map_err(|_| "a value is not a number")
    }

    fn value(&self, name: &str) -> Result<&str, &'static str> {
        let values = self.text.lines().skip(1).filter_map(|line| line.split_once(' '));
        values.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value).ok_or("a value is missing")
    }
}

fn title(name: &str) -> String {
    format!("umbel {name} 1\n")
}

fn check(text: &str) -> String {
    BASE32_NOPAD.encode(&sha256(text.as_bytes())).split_at(26).0.to_owned()
}
