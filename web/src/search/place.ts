// Where in the page one is. Places stand in the history's state and not in the address: a browser keeps addresses, and may copy
// them to its maker. An address with a fragment leads to a place, so that a browser can search with `…/search#q=%s` and a
// link can be opened in another tab; once read, it is taken out of the address.

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
const MAX_LINK = 8 * 1024;
const MAX_PAGE = 100;
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const LANGUAGE = /^[A-Za-z0-9-]{1,35}$/;

// `text` as a link that may be followed: http or https, with a host, and nobody's name before it.
export function link(text: string, base?: URL): URL | undefined {
  if (text.length > MAX_LINK) return undefined;
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
  const asked: Query = { terms: terms.trim().slice(0, MAX_TERMS), page: Math.min(Math.max(Math.trunc(page) || 1, 1), MAX_PAGE) };
  if (engine && NAME.test(engine)) asked.engine = engine;
  if (language && LANGUAGE.test(language)) asked.language = language;
  return asked;
}

// The place that a fragment leads to.
export function fromFragment(fragment: string): Place {
  const said = new URLSearchParams(fragment.replace(/^#/, ''));
  const read = link(said.get('read') ?? '');
  if (read) return { at: 'reader', url: read.href };
  const asked = query(said.get('q') ?? '', said.get('engine'), said.get('language'), Number(said.get('page') ?? 1));
  return asked.terms ? { at: 'results', query: asked } : HOME;
}

// The place in a history entry's state, which another version of this page may have left.
export function fromState(state: unknown): Place | undefined {
  const place = state as Partial<{ at: string; url: unknown; query: Partial<Query> }> | null;
  if (place?.at === 'home') return HOME;
  if ((place?.at === 'reader' || place?.at === 'leave') && typeof place.url === 'string') {
    const url = link(place.url);
    return url && { at: place.at, url: url.href };
  }
  if (place?.at === 'results' && typeof place.query?.terms === 'string') {
    const { terms, engine, language, page } = place.query;
    return { at: 'results', query: query(terms, engine, language, page) };
  }
  return undefined;
}

// An address that leads to a place; only for links that may be opened in another tab.
export function address(place: Place): string {
  const own = new URL(location.href);
  own.search = '';
  own.hash = '';
  if (place.at === 'reader') own.hash = new URLSearchParams({ read: place.url }).toString();
  if (place.at === 'results') {
    const { terms, engine, language, page } = place.query;
    const said = new URLSearchParams({ q: terms });
    if (engine) said.set('engine', engine);
    if (language) said.set('language', language);
    if (page > 1) said.set('page', String(page));
    own.hash = said.toString();
  }
  return own.href;
}
