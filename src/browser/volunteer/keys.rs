//! A volunteer's keys, stored by the wrapper.

use core::time::Duration;
use std::sync::Arc;

use rand::CryptoRng;
use zeroize::Zeroizing;

use crate::{
    base::{RelayId, WallTime},
    browser::{
        clock,
        store::{Store, StoreEntry},
    },
    crypto::{IdentityKey, OnionSecret},
    handshake::OnionKeyring,
};

/// Publication period of an onion key, as in native nodes.
const ONION_KEY_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Identity and onion keys.
pub(super) struct Keys {
    store: Store,
    identity: Arc<IdentityKey>,
    onion: Onion,
}

struct Onion {
    made: WallTime,
    current: OnionSecret,
    previous: Option<OnionSecret>,
}

impl Keys {
    /// Loads the stored keys; missing or invalid ones are created.
    pub(super) async fn load(store: Store, rng: &mut impl CryptoRng) -> Self {
        let kept = store.read(StoreEntry::Identity).await.map(Zeroizing::new);
        let seed = kept.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok()).map(Zeroizing::new);
        let identity = seed.map(|seed| IdentityKey::from_bytes(&seed)).unwrap_or_else(|| {
            let made = IdentityKey::generate(rng);
            store.keep(StoreEntry::Identity, made.to_bytes().as_slice());
            made
        });
        let onion = store.read(StoreEntry::Onion).await.map(Zeroizing::new).and_then(|bytes| Onion::decode(&bytes));
        let onion = onion.unwrap_or_else(|| {
            let made = Onion { made: clock::wall_time(), current: OnionSecret::generate(rng), previous: None };
            store.keep(StoreEntry::Onion, &made.encode());
            made
        });
        let mut keys = Self { store, identity: Arc::new(identity), onion };
        keys.rotate(rng);
        keys
    }

    /// The identity.
    pub(super) fn id(&self) -> RelayId {
        self.identity.id()
    }

    /// The keys for a relay's core.
    pub(super) fn for_relay(&self) -> (Arc<IdentityKey>, OnionKeyring) {
        let copy = |key: &OnionSecret| OnionSecret::from_bytes(*key.to_bytes());
        let keyring = OnionKeyring::new(copy(&self.onion.current), self.onion.previous.as_ref().map(copy));
        (Arc::clone(&self.identity), keyring)
    }

    /// The identity's signing key.
    pub(super) fn identity(&self) -> &IdentityKey {
        &self.identity
    }

    /// The onion key to rotate to, if the current one has reached the end of its lifetime.
    pub(super) fn rotate(&mut self, rng: &mut impl CryptoRng) -> Option<OnionSecret> {
        let now = clock::wall_time();
        if now.since(self.onion.made) < ONION_KEY_LIFETIME {
            return None;
        }
        let next = OnionSecret::generate(rng);
        self.onion.previous = Some(core::mem::replace(&mut self.onion.current, next));
        self.onion.made = now;
        self.store.keep(StoreEntry::Onion, &self.onion.encode());
        Some(OnionSecret::from_bytes(*self.onion.current.to_bytes()))
    }
}

impl Onion {
    /// The creation time (8 bytes, big-endian), the current key, and the previous one if there is one.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(72));
        bytes.extend_from_slice(&self.made.as_unix().to_be_bytes());
        bytes.extend_from_slice(self.current.to_bytes().as_slice());
        if let Some(previous) = &self.previous {
            bytes.extend_from_slice(previous.to_bytes().as_slice());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (made, rest) = bytes.split_first_chunk::<8>()?;
        let (current, previous) = rest.split_first_chunk::<32>()?;
        let previous = match previous {
            [] => None,
            bytes => Some(OnionSecret::from_bytes(bytes.try_into().ok()?)),
        };
        let made = WallTime::from_unix(u64::from_be_bytes(*made));
        Some(Self { made, current: OnionSecret::from_bytes(*current), previous })
    }
}
