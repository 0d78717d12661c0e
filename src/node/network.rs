//! Network settings shared by relays and clients: directories, transport parameters, certificates.

use core::time::Duration;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use rand::rngs::StdRng;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    base::RelayId,
    crypto::sha256,
    directory::{Document, NotAnAuthority, follow::Followed},
    directory_http::client::{DirectoryClient, DirectoryConfig},
    io::{clock::wall_time, files::Folder},
    transport::native::{Certificate, EndpointCaps, EndpointConfig, Ice},
};

use super::Failure;

/// Time without a packet after which a link counts as failed. During this time the link sends three keep-alives. The
/// time is short, so that the link's circuits are replaced soon.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// The directories and authorities that the options name.
///
/// # Errors
/// [`Failure::Usage`] when no directory or no authority is configured, or when a key is invalid.
pub(crate) fn directory_config(
    directories: &Option<Vec<String>>,
    authorities: &Option<Vec<String>>,
    folder: Option<&Folder>,
) -> Result<DirectoryConfig, Failure> {
    let missing = |key: &str| Failure::usage(format!("{key} is missing; add --{key}, or {key} = [\"…\"] in the file"));
    let directories = directories.clone().filter(|list| !list.is_empty()).ok_or_else(|| missing("directory"))?;
    let authorities = authorities.as_ref().filter(|list| !list.is_empty()).ok_or_else(|| missing("authority"))?;
    let read = |text: &String| {
        text.parse().map_err(|error: NotAnAuthority| Failure::usage(format!("authority: \"{text}\" is {error}")))
    };
    let authorities = authorities.iter().map(read).collect::<Result<_, _>>()?;
    Ok(DirectoryConfig { directories, authorities, cache: folder.map(Folder::consensus_cache) })
}

/// Passes each new document of kind `B` to `take` until `take` returns `false`.
pub(crate) async fn follow<B: Followed, F: Future<Output = bool>>(
    client: DirectoryClient,
    rng: StdRng,
    take: impl Fn(Arc<Document<B>>) -> F,
) {
    let (sender, receiver) = watch::channel(None);
    tokio::select! {
        () = client.follow(sender, wall_time, rng) => {}
        () = forward(receiver, take) => {}
    }
}

async fn forward<D, F: Future<Output = bool>>(
    mut receiver: watch::Receiver<Option<Arc<D>>>,
    take: impl Fn(Arc<D>) -> F,
) {
    while receiver.changed().await.is_ok() {
        let document = receiver.borrow_and_update().clone();
        if let Some(document) = document
            && !take(document).await
        {
            return;
        }
    }
}

/// The certificate in `folder`, created if there is none.
///
/// # Errors
/// When the certificate can't be read or created.
pub(crate) fn certificate(folder: &Folder) -> Result<Certificate, Failure> {
    let fresh = Certificate::generate().and_then(|fresh| fresh.to_bytes())?;
    let bytes: Zeroizing<Vec<u8>> = folder.certificate(move || fresh)?;
    Ok(Certificate::from_bytes(&bytes)?)
}

/// A relay's ICE user-name fragment and password. They are public and prove nothing, so they are derived from the
/// relay's identity. Derived values need no storage and stay the same after a restart.
///
/// # Errors
/// None in practice, because base 32 consists of ICE characters only.
pub(crate) fn ice_of(relay: &RelayId) -> Result<Ice, Failure> {
    let text = BASE32_NOPAD.encode(&sha256(relay.as_bytes()));
    let (ufrag, password) = text.split_at(8);
    Ice::new(ufrag, password.get(..32).unwrap_or(password)).map_err(Failure::failed)
}

/// Transport settings of a node. Without `ice`, the node accepts no dials, and presents a fresh certificate in each
/// dial of its own.
pub(crate) fn endpoint(certificate: Certificate, ice: Option<Ice>) -> EndpointConfig {
    EndpointConfig {
        fresh_certificate_per_dial: ice.is_none(),
        accept: ice,
        caps: EndpointCaps { silence_timeout: SILENCE_TIMEOUT, ..EndpointCaps::default() },
        ..EndpointConfig::new(certificate)
    }
}
