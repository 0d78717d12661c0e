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

/// Time after which a new onion key replaces the current one, as in native nodes.
const ONION_KEY_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Identity and onion keys.
pub(super) struct Keys {
    store: Store,
    identity: Arc<IdentityKey>,
    onion: OnionKeys,
}

struct OnionKeys {
    created: WallTime,
    current: OnionSecret,
    previous: Option<OnionSecret>,
}

impl Keys {
    /// Loads the stored keys, and creates missing or invalid ones.
    pub(super) async fn load(store: Store, rng: &mut impl CryptoRng) -> Self {
        let stored = store.read(StoreEntry::Identity).await.map(Zeroizing::new);
        let seed = stored.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok()).map(Zeroizing::new);
        let identity = seed.map(|seed| IdentityKey::from_bytes(&seed)).unwrap_or_else(|| {
            let created = IdentityKey::generate(rng);
            store.write(StoreEntry::Identity, created.to_bytes().as_slice());
            created
        });
        let onion = store.read(StoreEntry::Onion).await.map(Zeroizing::new).and_then(|bytes| OnionKeys::decode(&bytes));
        let onion = onion.unwrap_or_else(|| {
            let created =
                OnionKeys { created: clock::wall_time(), current: OnionSecret::generate(rng), previous: None };
            store.write(StoreEntry::Onion, &created.encode());
            created
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

    /// Once the current onion key has reached its lifetime, creates, stores and returns a new one.
    pub(super) fn rotate(&mut self, rng: &mut impl CryptoRng) -> Option<OnionSecret> {
        let now = clock::wall_time();
        if now.since(self.onion.created) < ONION_KEY_LIFETIME {
            return None;
        }
        let next = OnionSecret::generate(rng);
        self.onion.previous = Some(core::mem::replace(&mut self.onion.current, next));
        self.onion.created = now;
        self.store.write(StoreEntry::Onion, &self.onion.encode());
        Some(OnionSecret::from_bytes(*self.onion.current.to_bytes()))
    }
}

impl OnionKeys {
    /// The creation time (8 bytes, big-endian), the current key, and the previous key if there is one.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(72));
        bytes.extend_from_slice(&self.created.as_unix().to_be_bytes());
        bytes.extend_from_slice(self.current.to_bytes().as_slice());
        if let Some(previous) = &self.previous {
            bytes.extend_from_slice(previous.to_bytes().as_slice());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (created, rest) = bytes.split_first_chunk::<8>()?;
        let (current, previous) = rest.split_first_chunk::<32>()?;
        let previous = match previous {
            [] => None,
            bytes => Some(OnionSecret::from_bytes(bytes.try_into().ok()?)),
        };
        let created = WallTime::from_unix(u64::from_be_bytes(*created));
        Some(Self { created, current: OnionSecret::from_bytes(*current), previous })
    }
}
