// The reader view: a page fetched by an exit, cleaned, and shown as text. The exit performs the request and reads request and page. (The
// native client's reader view fetches over a stream instead.) The view states this.
import { h } from '../page/dom';
import { relayName, time } from '../page/words';
import type { PageResponse, Umbel } from '../umbel';
import { clean, type Cleaned } from './clean';
import { frame } from './frame';
import { brand, type Go } from './parts';
import { address, fromFragment, webUrl } from './place';

// Maximum length of a page, in bytes.
const MAX_PAGE_LEN = 3 * 1024 * 1024;
const MAX_REDIRECTS = 5;
// Time limit of a page with its redirects, in milliseconds.
const FETCH_TIMEOUT = 45_000;
// Maximum bytes from the start of a page to the end of its encoding declaration.
const MAX_META_LEN = 1024;
const REDIRECTS = [301, 302, 303, 307, 308];

export interface Reading {
  // The URL after redirects.
  url: URL;
  content: Cleaned | { plain: string };
  exit: string | undefined;
  // Time from the first request to the page, in milliseconds.
  duration: number;
  // Whether all requests, including redirects, used https.
  encrypted: boolean;
}

// The reason for which a page can't be shown, as text for the user.
export class ReadError extends Error {}

const field = (response: PageResponse, name: string): string | undefined =>
  response.headers.find(([own]) => own.toLowerCase() === name)?.[1];

// Fetches and cleans the page at `start`.
export async function read(umbel: Pick<Umbel, 'request'>, start: URL): Promise<Reading> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const tooSlow = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new ReadError('the page did not arrive in time')), FETCH_TIMEOUT);
  });
  try {
    return await Promise.race([fetchPage(umbel, start), tooSlow]);
  } finally {
    clearTimeout(timer);
  }
}

async function fetchPage(umbel: Pick<Umbel, 'request'>, start: URL): Promise<Reading> {
  const startTime = performance.now();
  let url = start;
  let encrypted = true;
  for (let step = 0; step <= MAX_REDIRECTS; step++) {
    encrypted &&= url.protocol === 'https:';
    const target = new URL(url);
    // The fragment is not sent to the site.
    target.hash = '';
    const response = await umbel.request({
      url: target.href,
      headers: [['accept', 'text/html,application/xhtml+xml,text/plain;q=0.9,*/*;q=0.5']],
    });
    const location = field(response, 'location');
    if (REDIRECTS.includes(response.status) && location !== undefined) {
      const next = webUrl(location, url);
      if (!next) throw new ReadError('the site redirects to a URL that is not http or https');
      url = next;
      continue;
    }
    return { url, content: contentOf(response, url), exit: response.path.at(-1)?.relay, duration: performance.now() - startTime, encrypted };
  }
  throw new ReadError('the site redirects too often');
}

// The displayed content of a response.
export function contentOf(response: PageResponse, url: URL): Reading['content'] {
  const encoding = field(response, 'content-encoding');
  if (encoding !== undefined && encoding !== 'identity') throw new ReadError('the page has a content encoding that the reader doesn’t support');
  const kind = (field(response, 'content-type') ?? '').toLowerCase();
  const type = kind.split(';')[0]?.trim() ?? '';
  const html = ['text/html', 'application/xhtml+xml', ''].includes(type);
  const failed = response.status < 200 || response.status >= 300;
  if (!html && !type.startsWith('text/') && type !== 'application/json') {
    throw new ReadError(failed ? `the site answered ${response.status}` : `it is not a text page but a file of type ${type}`);
  }
  if (response.body.length > MAX_PAGE_LEN) throw new ReadError('the page is larger than 3 MB');
  if (failed && response.body.length === 0) throw new ReadError(`the site answered ${response.status}`);
  const text = decode(kind, response.body, html);
  if (!html) return { plain: text };
  const cleaned = clean(text, url, (target) => address({ at: 'reader', url: target.href }));
  if (!cleaned) throw new ReadError('the page has too many elements');
  return cleaned;
}

// The text of `body`, in the encoding that its content type or the page itself declares.
export function decode(kind: string, body: Uint8Array, html: boolean): string {
  const label = (text: string) => /charset=\s*["']?\s*([a-z0-9_:.-]+)/i.exec(text)?.[1];
  const declared = label(kind) ?? (html ? label(new TextDecoder('latin1').decode(body.subarray(0, MAX_META_LEN))) : undefined);
  // A byte-order mark takes precedence.
  const marked = body[0] === 0xfe && body[1] === 0xff ? 'utf-16be' : body[0] === 0xff && body[1] === 0xfe ? 'utf-16le' : undefined;
  const utf8 = body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf ? 'utf-8' : undefined;
  try {
    return new TextDecoder(marked ?? utf8 ?? declared ?? 'utf-8').decode(body);
  } catch {
    return new TextDecoder().decode(body);
  }
}

// The page, with a bar that describes it.
export function view(go: Go, reading: Reading): Node[] {
  const { url, content } = reading;
  const host = url.host;
  const title = ('title' in content && content.title) || host;
  const follow = (address: string) => {
    let fragment: string;
    try {
      fragment = new URL(address).hash;
    } catch {
      return;
    }
    const place = fromFragment(fragment);
    if (place.at === 'reader') go(place);
  };
  return [
    h(
      'header',
      { class: 'bar' },
      h(
        'div',
        { class: 'row' },
        brand(go),
        h('button', { type: 'button', class: 'plain', onclick: () => history.back() }, '← back'),
        h('button', { type: 'button', class: 'plain', onclick: () => go({ at: 'leave', url: url.href }) }, 'open directly in this browser…'),
      ),
      h(
        'p',
        {},
        'Reader view of ', h('b', {}, host), `: text only, fetched by an exit in ${time(reading.duration)}. `, h('b', {}, host),
        ' sees the address of the exit instead of yours. ',
        h('b', {}, 'The exit'), reading.exit !== undefined && ' ', reading.exit !== undefined && h('code', { title: reading.exit }, relayName(reading.exit)),
        ' reads this page and could modify it, but doesn’t see your address.',
      ),
    ),
    h(
      'main',
      { class: 'foreign' },
      !reading.encrypted && h('p', { class: 'warn' }, 'The page was not encrypted by ', h('b', {}, host), '. Anyone between the site and the exit could modify it.'),
      h('h1', { class: 'title', dir: 'auto' }, title),
      h('p', { class: 'where' }, url.href),
      'plain' in content ? h('pre', { class: 'plain', dir: 'auto' }, content.plain) : frame(content.html, follow),
    ),
  ];
}
