//! Cleaning of URLs in search results: removes redirectors and tracking parameters.
//!
//! URLs of an engine often lead through a redirector, or have parameters that identify the query, the time or the
//! reader. An exit could add either. [`clean`] returns the http or https URL of the final target. Both ends call it:
//! the exit to send fewer bytes, the client because it doesn't trust the exit (`proto/09-delegated.md` §5). Cleaning
//! can't detect a page that was created for a single query, so clients fetch results through the overlay.

use data_encoding::BASE64URL_NOPAD;

use super::url::Url;

/// Maximum bytes of a URL, before and after cleaning. Longer URLs are removed.
pub const MAX_URL_LEN: usize = 2048;
/// Cap on nested redirectors.
const MAX_NESTING: usize = 8;

/// Parses `text` as a URL, relative to `base` if given, and cleans it. Removes user name, password, known redirectors,
/// known tracking parameters and text fragments. `None` unless the result is an http or https URL with a host, of at
/// most [`MAX_URL_LEN`] bytes.
///
/// Cleaning is idempotent.
#[must_use]
pub fn clean(text: &str, base: Option<&Url>) -> Option<Url> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_URL_LEN {
        return None;
    }
    let mut url = base.map_or_else(|| Url::parse(text), |base| base.join(text)).ok()?;
    for _ in 0..=MAX_NESTING {
        url = plain(url)?;
        match target(&url) {
            Some(inner) => url = inner,
            None => return Some(url),
        }
    }
    None
}

/// `url` without user name, password, tracking parameters and text fragment. `None` unless it is an http or https URL
/// with a host, of at most [`MAX_URL_LEN`] bytes.
fn plain(mut url: Url) -> Option<Url> {
    let is_web = matches!(url.scheme(), "http" | "https") && url.host_str().is_some_and(|host| !host.is_empty());
    if !is_web {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    let host = ComparableHost::of(&url);
    let query = url.query().and_then(|query| without_tracking(query, &host));
    url.set_query(query.as_deref());
    // A text fragment (`#:~:text=`) quotes words of the page, which may reveal the query.
    let fragment = url.fragment().map(|fragment| fragment.split(":~:").next().unwrap_or_default());
    let fragment = fragment.filter(|fragment| !fragment.is_empty() && !is_tracking(key(fragment).as_str(), &host));
    let fragment = fragment.map(str::to_owned);
    url.set_fragment(fragment.as_deref());
    (url.as_str().len() <= MAX_URL_LEN).then_some(url)
}

/// A host name for comparison.
struct ComparableHost(String);

impl ComparableHost {
    fn of(url: &Url) -> Self {
        Self(url.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase())
    }

    /// Whether the host is `domain` or a subdomain.
    fn is_under(&self, domain: &str) -> bool {
        self.0.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Whether the host is under `name` with one or two short labels after it, such as google.com and www.google.co.uk.
    fn is_brand(&self, name: &str) -> bool {
        let labels: Vec<&str> = self.0.split('.').collect();
        let position = labels.iter().position(|label| *label == name);
        position
            .and_then(|position| labels.get(position.saturating_add(1)..))
            .is_some_and(|top| (1..=2).contains(&top.len()) && top.iter().all(|label| (2..=3).contains(&label.len())))
    }
}

/// The location of the target's URL in a redirector's URL.
enum TargetLocation {
    /// The first of these parameters that is a URL.
    Parameter(&'static [&'static str]),
    /// This parameter: `a1`, and the URL in base64url.
    Base64(&'static str),
    /// The part of the path between `/RU=` and the next slash, percent-encoded.
    YahooPath,
    /// The rest of the path after this prefix. The scheme is https.
    Path(&'static str),
    /// The whole query.
    Query,
}

/// Redirectors: host, path prefix, and location of the target's URL. A host without a dot matches under any top-level
/// domain ([`ComparableHost::is_brand`]).
const REDIRECTORS: &[(&str, &str, TargetLocation)] = &[
    ("google", "/url", TargetLocation::Parameter(&["q", "url"])),
    ("google", "/imgres", TargetLocation::Parameter(&["imgrefurl"])),
    ("google", "/amp/s/", TargetLocation::Path("/amp/s/")),
    ("duckduckgo.com", "/l/", TargetLocation::Parameter(&["uddg"])),
    ("bing.com", "/ck/a", TargetLocation::Base64("u")),
    ("search.yahoo.com", "/", TargetLocation::YahooPath),
    ("facebook.com", "/l.php", TargetLocation::Parameter(&["u"])),
    ("l.instagram.com", "/", TargetLocation::Parameter(&["u"])),
    ("youtube.com", "/redirect", TargetLocation::Parameter(&["q"])),
    ("out.reddit.com", "/", TargetLocation::Parameter(&["url"])),
    ("linkedin.com", "/redir/", TargetLocation::Parameter(&["url"])),
    ("steamcommunity.com", "/linkfilter", TargetLocation::Parameter(&["u", "url"])),
    ("t.umblr.com", "/redirect", TargetLocation::Parameter(&["z"])),
    ("vk.com", "/away.php", TargetLocation::Parameter(&["to"])),
    ("disq.us", "/url", TargetLocation::Parameter(&["url"])),
    ("slack-redir.net", "/link", TargetLocation::Parameter(&["url"])),
    ("exit.sc", "/", TargetLocation::Parameter(&["url"])),
    ("medium.com", "/r/", TargetLocation::Parameter(&["url"])),
    ("href.li", "/", TargetLocation::Query),
];

/// The http or https URL of the target, if `url` is a known redirector's.
fn target(url: &Url) -> Option<Url> {
    let host = ComparableHost::of(url);
    let fits = |name: &str| if name.contains('.') { host.is_under(name) } else { host.is_brand(name) };
    REDIRECTORS
        .iter()
        .filter(|(name, path, _)| fits(name) && url.path().starts_with(path))
        .find_map(|(_, _, location)| location.target(url))
        .filter(|inner| matches!(inner.scheme(), "http" | "https"))
}

impl TargetLocation {
    fn target(&self, outer: &Url) -> Option<Url> {
        let text = match self {
            Self::Parameter(keys) => return keys.iter().find_map(|key| absolute(&parameter(outer, key)?)),
            Self::Base64(key) => {
                let value = parameter(outer, key)?;
                let bytes = BASE64URL_NOPAD.decode(value.strip_prefix("a1")?.trim_end_matches('=').as_bytes()).ok()?;
                String::from_utf8(bytes).ok()?
            }
            Self::YahooPath => {
                let (_, rest) = outer.path().split_once("/RU=")?;
                decoded(rest.split('/').next()?)
            }
            Self::Path(prefix) => format!("https://{}", outer.path().strip_prefix(prefix)?),
            Self::Query => outer.query()?.to_owned(),
        };
        absolute(&text)
    }
}

/// Parses an absolute URL, or a scheme-relative one as https.
fn absolute(text: &str) -> Option<Url> {
    if text.starts_with("//") { Url::parse(&format!("https:{text}")).ok() } else { Url::parse(text).ok() }
}

/// The decoded value of the first parameter `key`.
fn parameter(url: &Url, key: &str) -> Option<String> {
    url.query_pairs().find(|(found, _)| found == key).map(|(_, value)| value.into_owned())
}

/// `text` without percent-encoding.
fn decoded(text: &str) -> String {
    // Form decoding replaces `+` by a space and splits at `&` and `=`, so these are encoded first.
    let text = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    ::url::form_urlencoded::parse(text.as_bytes()).next().map(|(key, _)| key.into_owned()).unwrap_or_default()
}

/// The decoded name of a parameter, in lower case.
fn key(pair: &str) -> String {
    decoded(pair.split('=').next().unwrap_or_default()).to_ascii_lowercase()
}

/// `query` without empty and tracking parameters; `None` if no parameter remains.
fn without_tracking(query: &str, host: &ComparableHost) -> Option<String> {
    let kept: Vec<&str> =
        query.split('&').filter(|pair| !pair.is_empty() && !is_tracking(key(pair).as_str(), host)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// Prefixes of tracking parameters on any site.
const TRACKING_PREFIXES: &[&str] =
    &["utm_", "mtm_", "matomo_", "pk_", "piwik_", "hsa_", "_hs", "__hs", "vero_", "oly_"];

/// Tracking parameters on any site: click identifiers of advertisers and newsletters.
const TRACKING: &[&str] = &[
    "_branch_match_id",
    "_ga",
    "_gl",
    "_ke",
    "_kx",
    "_openstat",
    "dclid",
    "epik",
    "fb_action_ids",
    "fb_action_types",
    "fb_ref",
    "fb_source",
    "fbclid",
    "gad_source",
    "gbraid",
    "gclid",
    "gclsrc",
    "hsctatracking",
    "igsh",
    "igshid",
    "irclickid",
    "li_fat_id",
    "mc_cid",
    "mc_eid",
    "mkt_tok",
    "ml_subscriber",
    "ml_subscriber_hash",
    "msclkid",
    "rb_clickid",
    "ref_src",
    "ref_url",
    "s_cid",
    "srsltid",
    "ttclid",
    "twclid",
    "wbraid",
    "wickedid",
    "yclid",
    "ysclid",
];

/// Tracking parameters on these sites only.
const TRACKING_OF_SITES: &[(&str, &[&str])] = &[
    ("google", &["ei", "gs_lcp", "gs_lp", "oq", "sca_esv", "sclient", "sxsrf", "usg", "ved"]),
    ("bing.com", &["cvid", "form", "sk", "sp", "ghsh", "ghacc"]),
    ("youtube.com", &["feature", "si", "pp"]),
    ("youtu.be", &["feature", "si"]),
    ("spotify.com", &["si"]),
    ("amazon", &["pd_rd_i", "pd_rd_r", "pd_rd_w", "pd_rd_wg", "pf_rd_p", "pf_rd_r", "qid", "sprefix", "sr"]),
];

fn is_tracking(key: &str, host: &ComparableHost) -> bool {
    let is_of_site = |(site, keys): &(&str, &[&str])| {
        keys.contains(&key) && if site.contains('.') { host.is_under(site) } else { host.is_brand(site) }
    };
    TRACKING.contains(&key)
        || TRACKING_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || TRACKING_OF_SITES.iter().any(is_of_site)
}

#[cfg(test)]
mod tests;
