//! Links that may be shown and followed.

use url::Url;

const MAX_LINK_LEN: usize = 2048;

/// The link as it may be followed: absolute, http or https, without credentials, without what only tracks.
#[must_use]
pub fn clean(link: &str, base: Option<&Url>) -> Option<Url> {
    let mut url = Url::options().base_url(base).parse(link.trim()).ok()?;
    let plain = url.username().is_empty() && url.password().is_none();
    if !matches!(url.scheme(), "http" | "https") || !plain || url.host_str().is_none() {
        return None;
    }
    if url.query().is_some() {
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(name, _)| !name.starts_with("utm_"))
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(kept);
    }
    (url.as_str().len() <= MAX_LINK_LEN).then_some(url)
}
