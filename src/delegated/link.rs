//! Cleaning of URLs in search results: removes redirecters and tracking parameters.
//!
//! An engine's URLs often lead through a redirecter, or have parameters that identify the query, the time or the
//! reader. An exit could add either. [`clean`] returns the plain http or https URL of the final target. It is pure,
//! and both ends call it: the exit to send fewer bytes, the client because it doesn't trust the exit
//! (`proto/09-delegated.md` §5). It can't detect a page made for one query alone. Therefore results open through the
//! overlay.

use data_encoding::BASE64URL_NOPAD;

use super::url::Url;

/// Maximum bytes of a URL, before and after cleaning. Longer ones are dropped.
pub const MAX_LINK_LEN: usize = 2048;
/// Cap on nested redirecters.
const MAX_WRAPPERS: usize = 8;

/// Parses `text` as a URL, relative to `base` if given, and cleans it: http or https, with a host, without user name
/// and password, out of known redirecters, without known tracking parameters. `None` if no such URL remains.
///
/// Cleaning is idempotent.
#[must_use]
pub fn clean(text: &str, base: Option<&Url>) -> Option<Url> {
    let text = text.trim();
    if text.is_empty() || text.len() > MAX_LINK_LEN {
        return None;
    }
    let mut link = base.map_or_else(|| Url::parse(text), |base| base.join(text)).ok()?;
    for _ in 0..=MAX_WRAPPERS {
        link = plain(link)?;
        match wrapped(&link) {
            Some(inner) => link = inner,
            None => return Some(link),
        }
    }
    None
}

/// `link` without user name, password and tracking parameters; `None` if a page may not offer it.
fn plain(mut link: Url) -> Option<Url> {
    let offered = matches!(link.scheme(), "http" | "https") && link.host_str().is_some_and(|host| !host.is_empty());
    if !offered {
        return None;
    }
    link.set_username("").ok()?;
    link.set_password(None).ok()?;
    let host = ComparableHost::of(&link);
    let query = link.query().and_then(|query| without_tracking(query, &host));
    link.set_query(query.as_deref());
    // A text fragment (`#:~:text=`) marks words of the page, which reveal the snippet.
    let fragment = link.fragment().map(|fragment| fragment.split(":~:").next().unwrap_or_default());
    let fragment = fragment.filter(|fragment| !fragment.is_empty() && !is_tracking(key(fragment).as_str(), &host));
    let fragment = fragment.map(str::to_owned);
    link.set_fragment(fragment.as_deref());
    (link.as_str().len() <= MAX_LINK_LEN).then_some(link)
}

/// A host name for comparison.
struct ComparableHost(String);

impl ComparableHost {
    fn of(link: &Url) -> Self {
        Self(link.host_str().unwrap_or_default().trim_end_matches('.').to_ascii_lowercase())
    }

    /// Whether it is `domain` or a subdomain.
    fn is_under(&self, domain: &str) -> bool {
        self.0.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// Whether it is `name` under any top-level domain of one or two labels: google.com, www.google.co.uk.
    fn is_brand(&self, name: &str) -> bool {
        let labels: Vec<&str> = self.0.split('.').collect();
        let at = labels.iter().position(|label| *label == name);
        at.and_then(|at| labels.get(at.saturating_add(1)..))
            .is_some_and(|top| (1..=2).contains(&top.len()) && top.iter().all(|label| (2..=3).contains(&label.len())))
    }
}

/// The place of the target's URL in a redirecter's URL.
enum Keeps {
    /// The first of these parameters that contains a URL.
    Parameter(&'static [&'static str]),
    /// A parameter, after `a1`, in base64url.
    Base64(&'static str),
    /// The path, percent-encoded, between `RU=` and the next slash.
    YahooPath,
    /// The path after this prefix, without scheme.
    Path(&'static str),
    /// The whole query.
    Query,
}

/// Redirecters: host, path prefix, and place of the target's URL. A host without a dot is a brand under any top-level
/// domain.
const WRAPPERS: &[(&str, &str, Keeps)] = &[
    ("google", "/url", Keeps::Parameter(&["q", "url"])),
    ("google", "/imgres", Keeps::Parameter(&["imgrefurl"])),
    ("google", "/amp/s/", Keeps::Path("/amp/s/")),
    ("duckduckgo.com", "/l/", Keeps::Parameter(&["uddg"])),
    ("bing.com", "/ck/a", Keeps::Base64("u")),
    ("search.yahoo.com", "/", Keeps::YahooPath),
    ("facebook.com", "/l.php", Keeps::Parameter(&["u"])),
    ("l.instagram.com", "/", Keeps::Parameter(&["u"])),
    ("youtube.com", "/redirect", Keeps::Parameter(&["q"])),
    ("out.reddit.com", "/", Keeps::Parameter(&["url"])),
    ("linkedin.com", "/redir/", Keeps::Parameter(&["url"])),
    ("steamcommunity.com", "/linkfilter", Keeps::Parameter(&["u", "url"])),
    ("t.umblr.com", "/redirect", Keeps::Parameter(&["z"])),
    ("vk.com", "/away.php", Keeps::Parameter(&["to"])),
    ("disq.us", "/url", Keeps::Parameter(&["url"])),
    ("slack-redir.net", "/link", Keeps::Parameter(&["url"])),
    ("exit.sc", "/", Keeps::Parameter(&["url"])),
    ("medium.com", "/r/", Keeps::Parameter(&["url"])),
    ("href.li", "/", Keeps::Query),
];

/// The URL within `link`, if `link` is a known redirecter's. It is shorter, so unwrapping terminates.
fn wrapped(link: &Url) -> Option<Url> {
    let host = ComparableHost::of(link);
    let fits = |name: &str| if name.contains('.') { host.is_under(name) } else { host.is_brand(name) };
    WRAPPERS
        .iter()
        .filter(|(name, path, _)| fits(name) && link.path().starts_with(path))
        .find_map(|(_, _, keeps)| keeps.link(link))
        .filter(|inner| matches!(inner.scheme(), "http" | "https"))
}

impl Keeps {
    fn link(&self, outer: &Url) -> Option<Url> {
        let inner = match self {
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
        absolute(&inner)
    }
}

fn absolute(text: &str) -> Option<Url> {
    // Some redirecters use scheme-relative URLs.
    if text.starts_with("//") { Url::parse(&format!("https:{text}")).ok() } else { Url::parse(text).ok() }
}

fn parameter(link: &Url, key: &str) -> Option<String> {
    link.query_pairs().find(|(found, _)| found == key).map(|(_, value)| value.into_owned())
}

/// `text` without percent-encoding.
fn decoded(text: &str) -> String {
    // Form decoding turns a plus into a space, so the plus is encoded first.
    let text = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    ::url::form_urlencoded::parse(text.as_bytes()).next().map(|(key, _)| key.into_owned()).unwrap_or_default()
}

/// The name of a parameter, decoded.
fn key(pair: &str) -> String {
    decoded(pair.split('=').next().unwrap_or_default()).to_ascii_lowercase()
}

/// The parameters of `query` that don't track, unchanged.
fn without_tracking(query: &str, host: &ComparableHost) -> Option<String> {
    let kept: Vec<&str> =
        query.split('&').filter(|pair| !pair.is_empty() && !is_tracking(key(pair).as_str(), host)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// Prefixes of tracking parameters, on any site.
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
const TRACKING_AT: &[(&str, &[&str])] = &[
    ("google", &["ei", "gs_lcp", "gs_lp", "oq", "sca_esv", "sclient", "sxsrf", "usg", "ved"]),
    ("bing.com", &["cvid", "form", "sk", "sp", "ghsh", "ghacc"]),
    ("youtube.com", &["feature", "si", "pp"]),
    ("youtu.be", &["feature", "si"]),
    ("spotify.com", &["si"]),
    ("amazon", &["pd_rd_i", "pd_rd_r", "pd_rd_w", "pd_rd_wg", "pf_rd_p", "pf_rd_r", "qid", "sprefix", "sr"]),
];

fn is_tracking(key: &str, host: &ComparableHost) -> bool {
    let here = |(site, keys): &(&str, &[&str])| {
        keys.contains(&key) && if site.contains('.') { host.is_under(site) } else { host.is_brand(site) }
    };
    TRACKING.contains(&key)
        || TRACKING_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || TRACKING_AT.iter().any(here)
}

#[cfg(test)]
mod tests;
