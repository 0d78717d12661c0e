// What of a foreign page may be shown: text, its structure, and links that lead back to the reader. The same lists as
// src/page/reader/clean.rs.
//
// The page is parsed into a document that loads and runs nothing; DOMPurify takes what is on the lists; what is left is shown in a
// frame that may run and load nothing either (frame.ts).
import DOMPurify, { type Config, type DOMPurify as Purifier, type WindowLike } from 'dompurify';

import { link } from './place';

export interface Cleaned {
  title: string;
  html: string;
}

// Before each identifier, so that none is taken for one of ours.
const PREFIX = 'page-';
const MAX_TITLE = 200;
// A part of a page that calls itself the main one, but has less text, is not believed.
const LEAST_MAIN = 250;
// Elements of a page.
const MAX_ELEMENTS = 50_000;

const TAGS =
  'a abbr article b bdi bdo blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption figure h1 h2 h3 h4 h5 ' +
  'h6 hr i ins kbd li mark ol p pre q rp rt ruby s samp section small span strong sub summary sup table tbody td tfoot th thead time tr u ' +
  'ul var wbr';
// Elements that go with all that is in them.
const EMPTIED =
  'audio button canvas dialog embed head iframe math noembed noframes noscript object option plaintext script select style svg template ' +
  'textarea title video xmp';

const CONFIG: Config = {
  ALLOWED_TAGS: [...TAGS.split(' '), '#text'],
  ALLOWED_ATTR: ['href', 'start', 'span', 'colspan', 'rowspan', 'id', 'lang', 'dir'],
  FORBID_CONTENTS: EMPTIED.split(' '),
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOW_UNKNOWN_PROTOCOLS: false,
  KEEP_CONTENT: true,
  SAFE_FOR_XML: true,
  RETURN_DOM_FRAGMENT: true,
};

// The title and the cleaned content of the page `html` that stands at `url`; none if it is beyond the bounds. `lead` gives the
// address, within this page, under which a link is read.
export function clean(html: string, url: URL, lead: (url: URL) => string, view: WindowLike = window as unknown as WindowLike): Cleaned | undefined {
  const Parser = (view as unknown as typeof globalThis).DOMParser;
  const page = new Parser().parseFromString(html, 'text/html');
  if (page.getElementsByTagName('*').length > MAX_ELEMENTS) return undefined;
  const title = plain(page.title).slice(0, MAX_TITLE);
  const base = link(page.querySelector('base[href]')?.getAttribute('href') ?? '', url) ?? url;
  const mains = ['main', '[role=main]', 'article'].map((selector) => page.querySelector(selector));
  const main = mains.find((one) => (one?.textContent?.length ?? 0) >= LEAST_MAIN) ?? page.body;
  const cleaned = purifier(view).sanitize(main.innerHTML, CONFIG) as unknown as DocumentFragment;
  for (const element of cleaned.querySelectorAll('[id]')) element.id = PREFIX + element.id;
  for (const anchor of cleaned.querySelectorAll('a')) {
    const href = anchor.getAttribute('href')?.trim();
    anchor.removeAttribute('href');
    if (href === undefined) {
      // What leads nowhere is no link.
      anchor.replaceWith(...anchor.childNodes);
      continue;
    }
    if (href.startsWith('#')) {
      // Within the page: the frame scrolls there, and nothing is asked of anyone.
      if (href.length > 1) anchor.setAttribute('href', `#${PREFIX}${href.slice(1)}`);
      continue;
    }
    const target = link(href, base);
    if (target) anchor.setAttribute('href', lead(target));
    else anchor.replaceWith(...anchor.childNodes);
  }
  const holder = page.createElement('div');
  holder.append(cleaned);
  return { title, html: holder.innerHTML };
}

// A purifier of its own, so that nobody's hooks reach it.
let made: Purifier | undefined;
function purifier(view: WindowLike): Purifier {
  made ??= DOMPurify(view);
  return made;
}

// One line of text without anything that turns it around or moves the cursor.
export const plain = (text: string): string =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\s]+/gu, ' ').trim();
