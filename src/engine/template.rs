//! URL templates of OpenSearch 1.1, such as `https://engine.example/search?q={searchTerms}&start={startIndex?}`.
//!
//! The template is the operator's, and the values are the client's. Therefore each value is percent-encoded, no value
//! can be a part of the host, and the filled URL is parsed again. As an exception, the host may begin with
//! `{language}.`, with only the languages that the description lists.

use url::form_urlencoded;

use crate::delegated::url::Url;

/// The reason why a template can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not an http or https URL.
    #[error("the template \"{0}\" is not an http or https URL with a host")]
    Url(String),
    /// The template is relative, and the description was not fetched from a URL.
    #[error("the template \"{0}\" is relative, but the description was not fetched from a URL: write an absolute URL")]
    Relative(String),
    /// A brace is unmatched.
    #[error("the template \"{0}\" has an unmatched brace")]
    Brace(String),
    /// A required parameter is unknown.
    #[error("the template needs the unknown parameter \"{0}\"")]
    Parameter(String),
    /// The template has no parameter for the terms.
    #[error("the template \"{0}\" has no {{searchTerms}}")]
    NoTerms(String),
    /// A parameter is in the host.
    #[error(
        "the template \"{0}\" has a parameter in its host: a host may only begin with {{language}}., and <Language> \
         elements must list the languages"
    )]
    Host(String),
}

/// The languages in an engine's description. An empty list and the language `*` mean any language.
#[derive(Clone, Debug, Default)]
pub(super) struct Languages(pub(super) Vec<String>);

impl Languages {
    fn is_any(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(|language| language == "*")
    }

    /// The listed language that equals `requested`, or else a listed one with the same primary subtag. `requested`
    /// itself if any language is listed.
    fn matching<'a>(&'a self, requested: Option<&'a str>) -> Option<&'a str> {
        let requested = requested?;
        if self.is_any() {
            return Some(requested);
        }
        let primary = |language: &'a str| language.split('-').next().unwrap_or(language);
        let equal = self.0.iter().find(|language| language.eq_ignore_ascii_case(requested));
        let similar = || self.0.iter().find(|language| primary(language).eq_ignore_ascii_case(primary(requested)));
        equal.or_else(similar).map(String::as_str)
    }

    /// The value of a required language parameter without a matching language.
    fn fallback(&self) -> &str {
        self.0.first().map_or("*", String::as_str)
    }
}

/// The values for a template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    /// The search terms.
    pub(super) terms: &'a str,
    /// The number of results per page.
    pub(super) count: u32,
    /// The index of the first result.
    pub(super) start_index: u32,
    /// The page number.
    pub(super) start_page: u32,
    /// The requested language, if any.
    pub(super) language: Option<&'a str>,
}

/// A parsed template.
#[derive(Clone, Debug)]
pub(super) struct Template {
    /// The part before the question mark.
    base: Vec<TemplatePart>,
    /// The parts of each pair `key=value` of the query.
    pairs: Vec<Vec<TemplatePart>>,
    languages: Languages,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Literal(String),
    Parameter { parameter: Parameter, optional: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Terms,
    Count,
    StartIndex,
    StartPage,
    Language,
    Encoding,
    /// An unknown optional parameter, which never has a value.
    Unknown,
}

impl Template {
    /// Parses `text`, which may be relative to the URL of the description.
    pub(super) fn parse(
        text: &str,
        description_url: Option<&Url>,
        languages: Languages,
    ) -> Result<Self, TemplateError> {
        let owned = || text.to_owned();
        let absolute = match (text.strip_prefix('/'), description_url) {
            (Some(rest), Some(url)) if !rest.starts_with('/') => {
                format!("{}{text}", url.origin().ascii_serialization())
            }
            _ if text.starts_with("http://") || text.starts_with("https://") => text.to_owned(),
            _ if text.contains("://") => return Err(TemplateError::Url(owned())),
            _ => return Err(TemplateError::Relative(owned())),
        };
        check_host(&absolute, &languages)?;
        let without_fragment = absolute.split('#').next().unwrap_or_default();
        let (base, query) = without_fragment
            .split_once('?')
            .map_or_else(|| (without_fragment, None), |_| split_query(without_fragment));
        let base = parts(base)?;
        let pairs = query.map(|query| query.split('&').map(parts).collect()).transpose()?.unwrap_or_default();
        let template = Self { base, pairs, languages };
        if !template.has(&[Parameter::Terms]) {
            return Err(TemplateError::NoTerms(owned()));
        }
        let probe = Values { terms: "x", count: 1, start_index: 1, start_page: 1, language: None };
        let url = template.fill(&probe).ok_or_else(|| TemplateError::Url(owned()))?;
        let is_valid = url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none();
        if is_valid { Ok(template) } else { Err(TemplateError::Url(owned())) }
    }

    /// Whether the template has a parameter for the page.
    pub(super) fn has_pages(&self) -> bool {
        self.has(&[Parameter::StartIndex, Parameter::StartPage])
    }

    /// The origins of filled URLs. There are several origins if the language determines the host.
    pub(super) fn origins(&self) -> Vec<String> {
        let languages = self.languages.0.iter().map(|language| Some(language.as_str()));
        let mut origins: Vec<String> = Vec::new();
        for language in core::iter::once(None).chain(languages) {
            let probe = Values { terms: "x", count: 1, start_index: 1, start_page: 1, language };
            let origin = self.fill(&probe).map(|url| url.origin().ascii_serialization());
            origins.extend(origin.filter(|origin| !origins.contains(origin)));
        }
        origins
    }

    /// Whether the template has any of `parameters`.
    fn has(&self, parameters: &[Parameter]) -> bool {
        let parts = self.base.iter().chain(self.pairs.iter().flatten());
        parts
            .into_iter()
            .any(|part| matches!(part, TemplatePart::Parameter { parameter, .. } if parameters.contains(parameter)))
    }

    /// The URL filled with `values`. `None` if the result is no valid URL, or if terms in the path are only dots.
    pub(super) fn fill(&self, values: &Values<'_>) -> Option<Url> {
        let terms_in_path =
            self.base.iter().any(|part| matches!(part, TemplatePart::Parameter { parameter: Parameter::Terms, .. }));
        if terms_in_path && values.terms.bytes().all(|byte| byte == b'.') {
            return None;
        }
        let mut text: String = self.base.iter().map(|part| self.value(part, values).unwrap_or_default()).collect();
        let mut separator = '?';
        for pair in self.pairs.iter().filter(|pair| !self.is_omitted(pair, values)) {
            text.push(separator);
            separator = '&';
            text.extend(pair.iter().map(|part| self.value(part, values).unwrap_or_default()));
        }
        Url::parse(&text).ok()
    }

    /// Whether a pair `key={parameter?}` is omitted because the parameter has no value. Engines reject an empty value
    /// more often than a missing pair.
    fn is_omitted(&self, pair: &[TemplatePart], values: &Values<'_>) -> bool {
        pair.iter().any(|part| {
            matches!(part, TemplatePart::Parameter { optional: true, .. }) && self.value(part, values).is_none()
        })
    }

    fn value(&self, part: &TemplatePart, values: &Values<'_>) -> Option<String> {
        let (parameter, optional) = match part {
            TemplatePart::Literal(text) => return Some(text.clone()),
            TemplatePart::Parameter { parameter, optional } => (parameter, *optional),
        };
        let language = || match self.languages.matching(values.language) {
            None if !optional => Some(self.languages.fallback()),
            matching => matching,
        };
        match parameter {
            Parameter::Terms => Some(encoded(values.terms)),
            Parameter::Count => Some(values.count.to_string()),
            Parameter::StartIndex => Some(values.start_index.to_string()),
            Parameter::StartPage => Some(values.start_page.to_string()),
            Parameter::Language => language().map(encoded),
            Parameter::Encoding => Some("UTF-8".to_owned()),
            Parameter::Unknown => None,
        }
    }
}

/// `text` percent-encoded except for ASCII letters, digits and `*-._`.
pub(super) fn encoded(text: &str) -> String {
    // Form encoding writes a space as `+`, which is not a space in a path.
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// Checks that the host has no parameter except `{language}.` at its start, which requires listed languages.
fn check_host(template: &str, languages: &Languages) -> Result<(), TemplateError> {
    let (_, rest) = template.split_once("://").unwrap_or_default();
    let language = rest.strip_prefix("{language}.").or_else(|| rest.strip_prefix("{language?}."));
    if language.is_some() && languages.is_any() {
        return Err(TemplateError::Host(template.to_owned()));
    }
    let fixed = language.unwrap_or(rest);
    let authority = fixed.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.contains(['{', '}']) { Err(TemplateError::Host(template.to_owned())) } else { Ok(()) }
}

/// Splits at the first question mark outside braces. Within braces, a question mark marks an optional parameter.
fn split_query(text: &str) -> (&str, Option<&str>) {
    let mut in_braces = false;
    for (position, character) in text.char_indices() {
        match character {
            '{' => in_braces = true,
            '}' => in_braces = false,
            '?' if !in_braces => {
                let (base, query) = text.split_at_checked(position).unwrap_or((text, ""));
                return (base, query.strip_prefix('?'));
            }
            _ => {}
        }
    }
    (text, None)
}

fn parts(text: &str) -> Result<Vec<TemplatePart>, TemplateError> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some((literal, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or_else(|| TemplateError::Brace(text.to_owned()))?;
        if literal.contains('}') || name.contains('{') {
            return Err(TemplateError::Brace(text.to_owned()));
        }
        parts.push(TemplatePart::Literal(literal.to_owned()));
        parts.push(parameter(name)?);
        rest = after;
    }
    if rest.contains('}') {
        return Err(TemplateError::Brace(text.to_owned()));
    }
    parts.push(TemplatePart::Literal(rest.to_owned()));
    Ok(parts)
}

fn parameter(text: &str) -> Result<TemplatePart, TemplateError> {
    let (name, optional) = text.strip_suffix('?').map_or((text, false), |name| (name, true));
    let parameter = match name {
        "searchTerms" => Parameter::Terms,
        "count" => Parameter::Count,
        "startIndex" => Parameter::StartIndex,
        "startPage" => Parameter::StartPage,
        "language" => Parameter::Language,
        "inputEncoding" | "outputEncoding" => Parameter::Encoding,
        _ if optional => Parameter::Unknown,
        _ => return Err(TemplateError::Parameter(name.to_owned())),
    };
    Ok(TemplatePart::Parameter { parameter, optional })
}
