//! URLs of the WHATWG URL Standard, parsed by the crate `url` or, in a page, by the browser.
//!
//! In a page, the crate's tables of international names would be a large part of the download. Both parsers follow the
//! standard, so their results are equal. The type for a page has only the methods that this crate calls.

#[cfg(test)]
mod tests;

#[cfg(not(all(feature = "browser", target_arch = "wasm32")))]
pub use url::Url;

#[cfg(all(feature = "browser", target_arch = "wasm32"))]
pub use browser::Url;

#[cfg(all(feature = "browser", target_arch = "wasm32"))]
mod browser {
    use core::fmt;
    use std::borrow::Cow;

    /// An absolute URL.
    #[derive(Clone, PartialEq, Eq)]
    pub struct Url {
        href: String,
        origin: String,
        scheme: String,
        username: String,
        password: String,
        host: String,
        path: String,
        query: Option<String>,
        fragment: Option<String>,
    }

    impl fmt::Debug for Url {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Url([redacted])")
        }
    }

    /// Scheme, host and port of a URL.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UrlOrigin<'a>(&'a str);

    impl UrlOrigin<'_> {
        /// The browser's serialization.
        #[must_use]
        pub fn ascii_serialization(&self) -> String {
            self.0.to_owned()
        }
    }

    /// The text is not a URL.
    #[derive(Clone, Copy, Debug)]
    pub struct InvalidUrl;

    impl Url {
        /// Parses an absolute URL.
        ///
        /// # Errors
        /// When `text` is not an absolute URL.
        pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
            web_sys::Url::new(text).map(|url| Self::read(&url)).map_err(|_| InvalidUrl)
        }

        /// Parses `text` relative to this URL.
        ///
        /// # Errors
        /// When the result is not a URL.
        pub fn join(&self, text: &str) -> Result<Self, InvalidUrl> {
            web_sys::Url::new_with_base(text, &self.href).map(|url| Self::read(&url)).map_err(|_| InvalidUrl)
        }

        fn read(url: &web_sys::Url) -> Self {
            let part = |text: String, mark: char| text.strip_prefix(mark).map(str::to_owned);
            let mut scheme = url.protocol();
            scheme.truncate(scheme.trim_end_matches(':').len());
            Self {
                href: url.href(),
                origin: url.origin(),
                scheme,
                username: url.username(),
                password: url.password(),
                host: url.hostname(),
                path: url.pathname(),
                query: part(url.search(), '?'),
                fragment: part(url.hash(), '#'),
            }
        }

        fn change(&mut self, change: impl FnOnce(&web_sys::Url)) -> Result<(), ()> {
            let url = web_sys::Url::new(&self.href).map_err(|_| ())?;
            change(&url);
            *self = Self::read(&url);
            Ok(())
        }

        /// The whole URL.
        #[must_use]
        pub fn as_str(&self) -> &str {
            &self.href
        }

        /// The scheme, without the colon.
        #[must_use]
        pub fn scheme(&self) -> &str {
            &self.scheme
        }

        /// The user name, empty if there is none.
        #[must_use]
        pub fn username(&self) -> &str {
            &self.username
        }

        /// The password, if there is one.
        #[must_use]
        pub fn password(&self) -> Option<&str> {
            Some(self.password.as_str()).filter(|password| !password.is_empty())
        }

        /// Scheme, host and port.
        #[must_use]
        pub fn origin(&self) -> UrlOrigin<'_> {
            UrlOrigin(&self.origin)
        }

        /// The host, if there is one.
        #[must_use]
        pub fn host_str(&self) -> Option<&str> {
            Some(self.host.as_str()).filter(|host| !host.is_empty())
        }

        /// The path.
        #[must_use]
        pub fn path(&self) -> &str {
            &self.path
        }

        /// The query, without the question mark, if there is one.
        #[must_use]
        pub fn query(&self) -> Option<&str> {
            self.query.as_deref()
        }

        /// The fragment, without the hash, if there is one.
        #[must_use]
        pub fn fragment(&self) -> Option<&str> {
            self.fragment.as_deref()
        }

        /// The query's parameters, decoded.
        pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
            url::form_urlencoded::parse(self.query().unwrap_or_default().as_bytes())
        }

        /// Sets the user name.
        ///
        /// # Errors
        /// None in practice.
        pub fn set_username(&mut self, name: &str) -> Result<(), ()> {
            self.change(|url| url.set_username(name))
        }

        /// Sets or removes the password.
        ///
        /// # Errors
        /// None in practice.
        pub fn set_password(&mut self, password: Option<&str>) -> Result<(), ()> {
            self.change(|url| url.set_password(password.unwrap_or_default()))
        }

        /// Sets or removes the query.
        pub fn set_query(&mut self, query: Option<&str>) {
            // The browser strips one question mark from its input. The change can't fail, because `href` is a URL.
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            let _ = self.change(|url| url.set_search(&query));
        }

        /// Sets or removes the fragment.
        pub fn set_fragment(&mut self, fragment: Option<&str>) {
            let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
            let _ = self.change(|url| url.set_hash(&fragment));
        }
    }
}
