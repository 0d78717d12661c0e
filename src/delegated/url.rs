//! Addresses of the web, after the WHATWG URL Standard: the crate `url`, or in a page the browser's own parser.
//!
//! A browser has the same standard built in, with the tables of international names, which are a large part of what a page
//! would otherwise load. The same calls, as far as they are needed here; both follow the standard, so the answers are the same.

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

    /// An absolute address.
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

    /// Scheme, host and port of an address.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Origin<'a>(&'a str);

    impl Origin<'_> {
        /// As a browser writes it.
        #[must_use]
        pub fn ascii_serialization(&self) -> String {
            self.0.to_owned()
        }
    }

    /// There is no such address.
    #[derive(Clone, Copy, Debug)]
    pub struct NoUrl;

    impl Url {
        /// The absolute address that `text` is.
        ///
        /// # Errors
        /// When it is none.
        pub fn parse(text: &str) -> Result<Self, NoUrl> {
            web_sys::Url::new(text).map(|url| Self::read(&url)).map_err(|_| NoUrl)
        }

        /// The address that `text` is, seen from this one.
        ///
        /// # Errors
        /// When it is none.
        pub fn join(&self, text: &str) -> Result<Self, NoUrl> {
            web_sys::Url::new_with_base(text, &self.href).map(|url| Self::read(&url)).map_err(|_| NoUrl)
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

        /// All of it.
        #[must_use]
        pub fn as_str(&self) -> &str {
            &self.href
        }

        /// What stands before the first colon.
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
        pub fn origin(&self) -> Origin<'_> {
            Origin(&self.origin)
        }

        /// The host, if it has one.
        #[must_use]
        pub fn host_str(&self) -> Option<&str> {
            Some(self.host.as_str()).filter(|host| !host.is_empty())
        }

        /// The path.
        #[must_use]
        pub fn path(&self) -> &str {
            &self.path
        }

        /// What stands behind the question mark, if anything does.
        #[must_use]
        pub fn query(&self) -> Option<&str> {
            self.query.as_deref()
        }

        /// What stands behind the hash, if anything does.
        #[must_use]
        pub fn fragment(&self) -> Option<&str> {
            self.fragment.as_deref()
        }

        /// The parameters in the query, decoded.
        pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
            url::form_urlencoded::parse(self.query().unwrap_or_default().as_bytes())
        }

        /// Gives it another user name.
        ///
        /// # Errors
        /// Never in fact.
        pub fn set_username(&mut self, name: &str) -> Result<(), ()> {
            self.change(|url| url.set_username(name))
        }

        /// Gives it another password, or none.
        ///
        /// # Errors
        /// Never in fact.
        pub fn set_password(&mut self, password: Option<&str>) -> Result<(), ()> {
            self.change(|url| url.set_password(password.unwrap_or_default()))
        }

        /// Gives it another query, or none.
        pub fn set_query(&mut self, query: Option<&str>) {
            // The browser takes one mark off what it is given. It was an address, so it can be changed.
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            let _ = self.change(|url| url.set_search(&query));
        }

        /// Gives it another fragment, or none.
        pub fn set_fragment(&mut self, fragment: Option<&str>) {
            let fragment = fragment.map(|fragment| format!("#{fragment}")).unwrap_or_default();
            let _ = self.change(|url| url.set_hash(&fragment));
        }
    }
}
