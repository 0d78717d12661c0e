// Reduces a foreign page to text, structure, and links that open in the reader view. The lists are those of
// src/page/reader/clean.rs.
//
// The page is parsed into a document that loads and runs nothing. DOMPurify keeps only the listed elements and attributes. The
// result is shown in a frame that can neither run nor load anything (frame.ts).
import DOMPurify, { type Config, type DOMPurify as Purifier, type WindowLike } from 'dompurify';

import { webUrl } from './place';

export interface Cleaned {
  title: string;
  html: string;
}

// The prefix of each identifier, so that none equals an identifier of Umbel's pages.
const PREFIX = 'page-';
const MAX_TITLE = 200;
// A main element with less text, in characters, is ignored.
const MIN_MAIN_LENGTH = 250;
// Largest number of elements of a page.
const MAX_ELEMENTS = 50_000;

const TAGS =
  'a abbr article b bdi bdo blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 h4 h5 ' +
  'h6 hr i ins kbd li mark ol p pre q rp rt ruby s samp section small span strong sub summary sup table tbody td tfoot th thead time tr u ' +
  'ul var wbr';
// Elements that are removed with their content.
const REMOVED =
  'audio button canvas dialog embed head iframe math noembed noframes noscript object option plaintext script select style svg template ' +
  'textarea title video xmp';

const CONFIG: Config = {
  ALLOWED_TAGS: [...TAGS.split(' '), '#text'],
  ALLOWED_ATTR: ['href', 'start', 'span', 'colspan', 'rowspan', 'id', 'lang', 'dir'],
  FORBID_CONTENTS: REMOVED.split(' '),
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOW_UNKNOWN_PROTOCOLS: false,
  KEEP_CONTENT: true,
  SAFE_FOR_XML: true,
  RETURN_DOM_FRAGMENT: true,
};

// The title and the cleaned content of the page `html` from `url`; undefined if it has too many elements. `readerAddress` returns
// the address, within this page, that opens a URL in the reader view.
export function clean(html: string, url: URL, readerAddress: (url: URL) => string, view: WindowLike = window as unknown as WindowLike): Cleaned | undefined {
  const Parser = (view as unknown as typeof globalThis).DOMParser;
  const page = new Parser().parseFromString(html, 'text/html');
  if (page.getElementsByTagName('*').length > MAX_ELEMENTS) return undefined;
  const title = plain(page.title).slice(0, MAX_TITLE);
  const base = webUrl(page.querySelector('base[href]')?.getAttribute('href') ?? '', url) ?? url;
  const mains = ['main', '[role=main]', 'article'].map((selector) => page.querySelector(selector));
  const main = mains.find((element) => (element?.textContent?.length ?? 0) >= MIN_MAIN_LENGTH) ?? page.body;
  const cleaned = purifier(view).sanitize(main.innerHTML, CONFIG) as unknown as DocumentFragment;
  for (const element of cleaned.querySelectorAll('[id]')) element.id = PREFIX + element.id;
  for (const anchor of cleaned.querySelectorAll('a')) {
    const href = anchor.getAttribute('href')?.trim();
    anchor.removeAttribute('href');
    if (href === undefined) {
      // An anchor without a target is replaced by its content.
      anchor.replaceWith(...anchor.childNodes);
      continue;
    }
    if (href.startsWith('#')) {
      // A target within the page: the frame scrolls to it, without a request.
      if (href.length > 1) anchor.setAttribute('href', `#${PREFIX}${href.slice(1)}`);
      continue;
    }
    const target = webUrl(href, base);
    if (target) anchor.setAttribute('href', readerAddress(target));
    else anchor.replaceWith(...anchor.childNodes);
  }
  const holder = page.createElement('div');
  holder.append(cleaned);
  return { title, html: holder.innerHTML };
}

// A separate purifier, without the hooks of other code.
let instance: Purifier | undefined;
function purifier(view: WindowLike): Purifier {
  instance ??= DOMPurify(view);
  return instance;
}

// One line of text, without control characters and characters that change the direction of text.
export const plain = (text: string): string =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\s]+/gu, ' ').trim();
