//! Parser of OpenSearch 1.1 description documents, with extensions.
//!
//! A description is an operator's file, or the document at a URL that the operator configures. The caps apply to both,
//! because the document at a URL may change. Extension elements (`urn:umbel:engine`) describe formats of answers other
//! than RSS, Atom, SearXNG's JSON and suggestions. Other software ignores them:
//!
//! ```xml
//! <umbel:engine name="wikipedia"/>
//! <umbel:results type="application/json" select="/query/search" total="/query/searchinfo/totalhits"
//!                title="/title" link="/wiki/{/title}" snippet="/snippet"/>
//! <umbel:results type="text/html" select="div.result" title="h2" link="h2 a" snippet="p"/>
//! ```

use std::mem;

#[cfg(feature = "native")]
use super::html::{Selectors, selector};
use super::{
    AnswerFormat, DescriptionError, Engine, MAX_DESCRIPTION_LEN,
    description_error::{EXTENSION, OPENSEARCH},
    json::{Mapping, Pattern, pointer},
    parser::xml::walk,
    template::{Languages, Template},
    xml::{Attributes, XmlError, XmlEvent},
};
use crate::{
    base::Counter as _,
    delegated::{EngineName, text, url::Url},
};

/// Maximum number of `Url` elements, of `Language` elements and of `results` elements. Further elements are ignored.
const MAX_ELEMENTS: usize = 64;
/// Maximum characters of a title.
const MAX_TITLE_CHARS: usize = 60;

impl Engine {
    /// Parses a description for an exit in a page. Formats in HTML are ignored, because a page can't bound the tree of
    /// an HTML document.
    ///
    /// # Errors
    /// When the description is invalid, or contains no supported format except HTML.
    pub fn describe_for_page(document: &[u8], name: Option<EngineName>) -> Result<Self, DescriptionError> {
        DescriptionParser::of(document)?.engine(None, name, false)
    }

    /// Parses a description. `url` is the URL of the document, if it was fetched. `name` is the operator's name for
    /// the engine. The default is the name in the description, or else the words of the short name, joined by hyphens.
    ///
    /// # Errors
    /// When the description is invalid, or contains no supported format.
    #[cfg(feature = "native")]
    pub fn describe(document: &[u8], url: Option<&Url>, name: Option<EngineName>) -> Result<Self, DescriptionError> {
        DescriptionParser::of(document)?.engine(url, name, true)
    }
}

/// The state of parsing a description.
#[derive(Default)]
struct DescriptionParser {
    depth: usize,
    /// Whether the root element is that of a description.
    is_description: bool,
    /// The open element, if its text is used.
    text: Option<TextElement>,
    short_name: String,
    /// The text of the open `Language` element.
    language: String,
    languages: Vec<String>,
    name: Option<String>,
    urls: Vec<UrlElement>,
    results: Vec<ResultsElement>,
}

#[derive(Clone, Copy)]
enum TextElement {
    ShortName,
    Language,
}

struct UrlElement {
    template: String,
    media: String,
    /// The index of the first result.
    index_offset: u32,
    /// The number of the first page.
    page_offset: u32,
}

struct ResultsElement {
    media: String,
    select: Option<String>,
    title: Option<String>,
    link: Option<String>,
    snippet: Option<String>,
    total: Option<String>,
}

impl DescriptionParser {
    fn of(document: &[u8]) -> Result<Self, DescriptionError> {
        if document.len() > MAX_DESCRIPTION_LEN {
            return Err(DescriptionError::TooLong);
        }
        let document = str::from_utf8(document).map_err(|_| XmlError::Encoding)?;
        let mut parser = Self::default();
        walk(document.trim_start_matches('\u{feff}').trim_start(), |event| parser.handle_event(event))?;
        Ok(parser)
    }

    fn handle_event(&mut self, event: XmlEvent<'_>) {
        match event {
            XmlEvent::Open { namespace, name, attributes } => {
                self.depth.increment();
                self.text = None;
                match (self.depth, namespace, name) {
                    (1, OPENSEARCH, "OpenSearchDescription") => self.is_description = true,
                    (2, OPENSEARCH, "ShortName") => self.text = Some(TextElement::ShortName),
                    (2, OPENSEARCH, "Language") => self.text = Some(TextElement::Language),
                    (2, OPENSEARCH, "Url") if self.urls.len() < MAX_ELEMENTS => {
                        self.urls.extend(UrlElement::read(attributes));
                    }
                    (2, EXTENSION, "engine") => self.name = attributes.value("name"),
                    (2, EXTENSION, "results") if self.results.len() < MAX_ELEMENTS => {
                        self.results.push(ResultsElement::read(attributes));
                    }
                    _ => {}
                }
            }
            XmlEvent::Text(text) => match self.text {
                Some(TextElement::ShortName) => self.short_name.push_str(text),
                Some(TextElement::Language) => self.language.push_str(text),
                None => {}
            },
            XmlEvent::Close => {
                self.depth.decrement();
                let language = mem::take(&mut self.language).trim().to_owned();
                if is_language(&language) && self.languages.len() < MAX_ELEMENTS {
                    self.languages.push(language);
                }
                self.text = None;
            }
        }
    }

    fn engine(
        self,
        description_url: Option<&Url>,
        name: Option<EngineName>,
        with_html: bool,
    ) -> Result<Engine, DescriptionError> {
        if !self.is_description {
            return Err(DescriptionError::Root);
        }
        let title = text::plain(&self.short_name, MAX_TITLE_CHARS);
        let name = match (name, self.name) {
            (Some(name), _) => Some(name),
            (None, Some(described)) => EngineName::parse(&described),
            (None, None) => EngineName::parse(&name_of(&title)),
        };
        let name = name.ok_or(DescriptionError::Name)?;
        let languages = Languages(self.languages);
        let mut preferred: Option<(u8, Engine)> = None;
        let (mut template_error, mut has_html) = (None, false);
        for url in self.urls {
            let results = self.results.iter().find(|results| results.media == url.media);
            if !with_html && is_html(&url.media) {
                has_html |= results.is_some();
                continue;
            }
            let Some((rank, format)) = format(&url.media, results)? else { continue };
            if preferred.as_ref().is_some_and(|(lowest, _)| *lowest <= rank) {
                continue;
            }
            match Template::parse(&url.template, description_url, languages.clone()) {
                Ok(template) => {
                    let (index_offset, page_offset) = (url.index_offset, url.page_offset);
                    let (name, title) = (name.clone(), title.clone());
                    preferred = Some((rank, Engine { name, title, template, format, index_offset, page_offset }));
                }
                Err(error) => template_error = Some(error),
            }
        }
        match (preferred, template_error) {
            (Some((_, engine)), _) => Ok(engine),
            (None, Some(error)) => Err(error.into()),
            (None, None) if has_html => Err(DescriptionError::OnlyHtml),
            (None, None) => Err(DescriptionError::NoUrl),
        }
    }
}

/// The rank and the format of answers of the media type `media`. The lowest rank is preferred. `None` if the type is
/// not supported.
fn format(media: &str, results: Option<&ResultsElement>) -> Result<Option<(u8, AnswerFormat)>, DescriptionError> {
    let format = match (media, results) {
        ("application/json", Some(results)) => (0, AnswerFormat::Json(Some(results.mapping()?))),
        #[cfg(feature = "native")]
        (media, Some(results)) if is_html(media) => (1, AnswerFormat::Html(results.selectors()?)),
        ("application/rss+xml" | "application/atom+xml" | "application/rdf+xml", _) => (2, AnswerFormat::Feed),
        ("application/json", None) => (3, AnswerFormat::Json(None)),
        ("application/x-suggestions+json", _) => (4, AnswerFormat::Suggestions),
        _ => return Ok(None),
    };
    Ok(Some(format))
}

fn is_html(media: &str) -> bool {
    matches!(media, "text/html" | "application/xhtml+xml")
}

impl UrlElement {
    /// `None` if the element is not for results, or its method is not GET.
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let rel = attributes.value("rel");
        let is_results = |rel: &str| matches!(rel, "results" | "suggestions");
        let is_for_results = rel.is_none_or(|rel| rel.split_ascii_whitespace().any(is_results));
        let is_get = attributes.value("method").is_none_or(|method| method.eq_ignore_ascii_case("get"));
        let number = |name| attributes.value(name).and_then(|value| value.trim().parse().ok()).unwrap_or(1);
        (is_for_results && is_get).then_some(Self {
            template: attributes.value("template")?.trim().to_owned(),
            media: media(&attributes.value("type")?),
            index_offset: number("indexOffset"),
            page_offset: number("pageOffset"),
        })
    }
}

impl ResultsElement {
    fn read(attributes: Attributes<'_>) -> Self {
        let value = |name| attributes.value(name).map(|value| value.trim().to_owned());
        Self {
            media: media(&value("type").unwrap_or_default()),
            select: value("select"),
            title: value("title"),
            link: value("link"),
            snippet: value("snippet"),
            total: value("total"),
        }
    }

    fn require<'a>(value: Option<&'a String>, name: &'static str) -> Result<&'a str, DescriptionError> {
        value.map(String::as_str).ok_or(DescriptionError::Attribute(name))
    }

    fn mapping(&self) -> Result<Mapping, DescriptionError> {
        Ok(Mapping {
            results: pointer(Self::require(self.select.as_ref(), "select")?)?,
            total: self.total.as_deref().map(pointer).transpose()?,
            title: Pattern::parse(Self::require(self.title.as_ref(), "title")?)?,
            link: Pattern::parse(Self::require(self.link.as_ref(), "link")?)?,
            snippet: self.snippet.as_deref().map(Pattern::parse).transpose()?,
        })
    }

    #[cfg(feature = "native")]
    fn selectors(&self) -> Result<Selectors, DescriptionError> {
        Ok(Selectors {
            result: selector(Self::require(self.select.as_ref(), "select")?)?,
            title: selector(Self::require(self.title.as_ref(), "title")?)?,
            link: selector(Self::require(self.link.as_ref(), "link")?)?,
            snippet: self.snippet.as_deref().map(selector).transpose()?,
        })
    }
}

/// A media type without its parameters.
fn media(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn is_language(text: &str) -> bool {
    text == "*"
        || (1..=35).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The words of a title in lower case, joined by hyphens. Words consist of ASCII letters and digits.
fn name_of(title: &str) -> String {
    let lower = title.to_ascii_lowercase();
    let words = lower.split(|character: char| !character.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}
