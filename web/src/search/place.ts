// Places within the page. They are stored in the state of history entries and not in the URL, because a browser stores URLs and may
// send them to its vendor. A URL with a fragment leads to a place, so that a browser can search with `…/search#q=%s` and an anchor
// can be opened in another tab. The page reads the fragment and removes it from the URL.

export interface Query {
  terms: string;
  engine?: string;
  language?: string;
  page: number;
}

export type Place =
  | { at: 'home' }
  | { at: 'results'; query: Query }
  | { at: 'reader'; url: string }
  | { at: 'leave'; url: string };

export const HOME: Place = { at: 'home' };
export const MAX_TERMS = 1024;
const MAX_URL = 8 * 1024;
const MAX_PAGE = 100;
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const LANGUAGE = /^[A-Za-z0-9-]{1,35}$/;

// `text` as a URL that may be opened: http or https, with a host. User name and password are removed.
export function webUrl(text: string, base?: URL): URL | undefined {
  if (text.length > MAX_URL) return undefined;
  let url: URL;
  try {
    url = new URL(text, base);
  } catch {
    return undefined;
  }
  if (!['http:', 'https:'].includes(url.protocol) || url.hostname === '') return undefined;
  url.username = '';
  url.password = '';
  return url;
}

export function query(terms: string, engine?: string | null, language?: string | null, page = 1): Query {
  const wanted: Query = { terms: terms.trim().slice(0, MAX_TERMS), page: Math.min(Math.max(Math.trunc(page) || 1, 1), MAX_PAGE) };
  if (engine && NAME.test(engine)) wanted.engine = engine;
  if (language && LANGUAGE.test(language)) wanted.language = language;
  return wanted;
}

// The place of a fragment.
export function fromFragment(fragment: string): Place {
  const parameters = new URLSearchParams(fragment.replace(/^#/, ''));
  const read = webUrl(parameters.get('read') ?? '');
  if (read) return { at: 'reader', url: read.href };
  const wanted = query(parameters.get('q') ?? '', parameters.get('engine'), parameters.get('language'), Number(parameters.get('page') ?? 1));
  return wanted.terms ? { at: 'results', query: wanted } : HOME;
}

// The place in a history entry's state, which another version of this page may have stored.
export function fromState(state: unknown): Place | undefined {
  const place = state as Partial<{ at: string; url: unknown; query: Partial<Query> }> | null;
  if (place?.at === 'home') return HOME;
  if ((place?.at === 'reader' || place?.at === 'leave') && typeof place.url === 'string') {
    const url = webUrl(place.url);
    return url && { at: place.at, url: url.href };
  }
  if (place?.at === 'results' && typeof place.query?.terms === 'string') {
    const { terms, engine, language, page } = place.query;
    return { at: 'results', query: query(terms, engine, language, page) };
  }
  return undefined;
}

// The URL of a place, only for anchors that may be opened in another tab.
export function address(place: Place): string {
  const own = new URL(location.href);
  own.search = '';
  own.hash = '';
  if (place.at === 'reader') own.hash = new URLSearchParams({ read: place.url }).toString();
  if (place.at === 'results') {
    const { terms, engine, language, page } = place.query;
    const parameters = new URLSearchParams({ q: terms });
    if (engine) parameters.set('engine', engine);
    if (language) parameters.set('language', language);
    if (page > 1) parameters.set('page', String(page));
    own.hash = parameters.toString();
  }
  return own.href;
}
