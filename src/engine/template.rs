//! URL templates of OpenSearch 1.1, such as `https://engine.example/search?q={searchTerms}&start={startIndex?}`.
//!
//! The template comes from the operator, the values come from the client. So each value is percent-encoded
//! completely, no value can be part of the host, and the filled URL is parsed again. The one exception,
//! `https://{language}.engine.example/`, allows only the languages that the description lists.

use url::form_urlencoded;

use crate::delegated::url::Url;

/// Why a template can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is no http or https URL.
    #[error("the template \"{0}\" is not an http or https URL with a host")]
    Url(String),
    /// It is relative, but the description is a file.
    #[error("the template \"{0}\" is relative, but the description is a file; write an absolute URL")]
    Relative(String),
    /// A brace is unmatched.
    #[error("the template \"{0}\" has an unmatched brace")]
    Brace(String),
    /// A required parameter is unknown.
    #[error("the template needs the unknown parameter \"{0}\"")]
    Parameter(String),
    /// It has no parameter for the terms.
    #[error("the template \"{0}\" has no {{searchTerms}}")]
    NoTerms(String),
    /// A parameter would determine the host.
    #[error(
        "the template \"{0}\" has a parameter in its host: only {{language}}. may begin it, and <Language> elements must list \
         the languages"
    )]
    Host(String),
}

/// The languages of an engine, as its description lists them; an empty list, or `*`, means any.
#[derive(Clone, Debug, Default)]
pub(super) struct Languages(pub(super) Vec<String>);

impl Languages {
    fn is_any(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(|language| language == "*")
    }

    /// The engine's language that matches `wanted`, if there is one: equal, or equal without the region.
    fn matching<'a>(&'a self, wanted: Option<&'a str>) -> Option<&'a str> {
        let wanted = wanted?;
        if self.is_any() {
            return Some(wanted);
        }
        let primary = |language: &'a str| language.split('-').next().unwrap_or(language);
        let same = self.0.iter().find(|language| language.eq_ignore_ascii_case(wanted));
        let near = || self.0.iter().find(|language| primary(language).eq_ignore_ascii_case(primary(wanted)));
        same.or_else(near).map(String::as_str)
    }

    /// The default where a language is required.
    fn any(&self) -> &str {
        self.0.first().map_or("*", String::as_str)
    }
}

/// The values for a template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    /// The terms.
    pub(super) terms: &'a str,
    /// Results per page.
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
    /// The parts between ampersands after it.
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
    /// An unknown parameter, always empty.
    Unknown,
}

impl Template {
    /// Parses `text`. It may be relative if the description came from a URL, `origin`.
    pub(super) fn parse(text: &str, origin: Option<&Url>, languages: Languages) -> Result<Self, TemplateError> {
        let quoted = || text.to_owned();
        let whole = match (text.strip_prefix('/'), origin) {
            (Some(rest), Some(origin)) if !rest.starts_with('/') => {
                format!("{}{text}", origin.origin().ascii_serialization())
            }
            _ if text.starts_with("http://") || text.starts_with("https://") => text.to_owned(),
            _ if text.contains("://") => return Err(TemplateError::Url(quoted())),
            _ => return Err(TemplateError::Relative(quoted())),
        };
        check_host(&whole, &languages)?;
        let without_fragment = whole.split('#').next().unwrap_or_default();
        let (base, query) = without_fragment.split_once('?').map_or_else(
            // A question mark within braces marks a parameter as optional.
            || (without_fragment, None),
            |_| question_mark(without_fragment),
        );
        let base = parts(base)?;
        let pairs = query.map(|query| query.split('&').map(parts).collect()).transpose()?.unwrap_or_default();
        let template = Self { base, pairs, languages };
        if !template.has(&[Parameter::Terms]) {
            return Err(TemplateError::NoTerms(quoted()));
        }
        let probe = Values { terms: "x", count: 1, start_index: 1, start_page: 1, language: None };
        let url = template.fill(&probe).ok_or_else(|| TemplateError::Url(quoted()))?;
        let plain = url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none();
        if plain { Ok(template) } else { Err(TemplateError::Url(quoted())) }
    }

    /// Whether it has a parameter for the page.
    pub(super) fn has_pages(&self) -> bool {
        self.has(&[Parameter::StartIndex, Parameter::StartPage])
    }

    /// The origins of its URLs: several if the language determines the host.
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

    fn has(&self, wanted: &[Parameter]) -> bool {
        let parts = self.base.iter().chain(self.pairs.iter().flatten());
        parts
            .into_iter()
            .any(|part| matches!(part, TemplatePart::Parameter { parameter, .. } if wanted.contains(parameter)))
    }

    /// The URL filled with `values`. `None` if they make no valid URL, for example the terms `..` in the path.
    pub(super) fn fill(&self, values: &Values<'_>) -> Option<Url> {
        let terms_in_path =
            self.base.iter().any(|part| matches!(part, TemplatePart::Parameter { parameter: Parameter::Terms, .. }));
        if terms_in_path && values.terms.bytes().all(|byte| byte == b'.') {
            return None;
        }
        let mut text: String = self.base.iter().map(|part| self.value(part, values).unwrap_or_default()).collect();
        let mut separator = '?';
        for pair in self.pairs.iter().filter(|pair| !self.is_left_out(pair, values)) {
            text.push(separator);
            separator = '&';
            text.extend(pair.iter().map(|part| self.value(part, values).unwrap_or_default()));
        }
        Url::parse(&text).ok()
    }

    /// Whether a `key={parameter?}` is omitted for lack of a value: engines more often reject an empty value than a
    /// missing one.
    fn is_left_out(&self, pair: &[TemplatePart], values: &Values<'_>) -> bool {
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
            None if !optional => Some(self.languages.any()),
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

/// `text` with all characters percent-encoded that could have a meaning in a URL.
pub(super) fn encoded(text: &str) -> String {
    // A form encodes a space as a plus, which only form decoders accept.
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

fn check_host(whole: &str, languages: &Languages) -> Result<(), TemplateError> {
    let (_, rest) = whole.split_once("://").unwrap_or_default();
    let language = rest.strip_prefix("{language}.").or_else(|| rest.strip_prefix("{language?}."));
    if language.is_some() && languages.is_any() {
        return Err(TemplateError::Host(whole.to_owned()));
    }
    let fixed = language.unwrap_or(rest);
    let authority = fixed.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    if authority.contains(['{', '}']) { Err(TemplateError::Host(whole.to_owned())) } else { Ok(()) }
}

/// Splits at the first question mark outside braces.
fn question_mark(text: &str) -> (&str, Option<&str>) {
    let mut within = false;
    for (at, character) in text.char_indices() {
        match character {
            '{' => within = true,
            '}' => within = false,
            '?' if !within => {
                let (base, query) = text.split_at_checked(at).unwrap_or((text, ""));
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
