// The views of the search page: search box, results, failures, and the confirmation before a page is opened outside of the overlay. The
// texts are those of the native client's page (src/page) where possible.
import { h } from '../page/dom';
import { explain, time, type FailureText } from '../page/words';
import type { SearchAnswer, SearchResult } from '../umbel';
import { brand, form, anchorTo, type Go } from './parts';
import type { Query } from './place';
import { route } from './route';

export interface Scene {
  go: Go;
  engines: readonly string[];
}

// The element with the progress of the client's start.
export const progress = (): HTMLParagraphElement => h('p', { class: 'progress', id: 'progress', role: 'status' });

export function home(scene: Scene): Node[] {
  return [
    h(
      'main',
      { class: 'home' },
      brand(scene.go),
      h('p', { class: 'promise' }, 'Private search: the search engine sees your query, but not your address.'),
      form(scene.go, scene.engines, undefined, true),
      progress(),
      h(
        'section',
        { class: 'how' },
        h('h2', {}, 'The path of your query'),
        h(
          'ol',
          {},
          h('li', {}, 'This browser encrypts the query in three layers and sends it to a first relay. This relay sees your address but can’t read the query.'),
          h('li', {}, 'A second relay forwards it. This relay sees neither your address nor the query.'),
          h(
            'li',
            {},
            'A third relay, the exit, decrypts the last layer and sends the query to the search engine. The exit reads the query ' +
              'but doesn’t see your address. The engine sees the exit’s address.',
          ),
        ),
        h('p', {}, 'Don’t write anything into a query that identifies you.'),
      ),
    ),
  ];
}

export const top = (scene: Scene, searchQuery?: Query): HTMLElement =>
  h('header', { class: 'top' }, searchQuery && h('a', { class: 'skip', href: '#results' }, 'Skip to the results'), brand(scene.go), form(scene.go, scene.engines, searchQuery, false));

export function searching(scene: Scene, searchQuery: Query): Node[] {
  return [top(scene, searchQuery), h('main', {}, progress())];
}

export function results(scene: Scene, searchQuery: Query, answer: SearchAnswer): Node[] {
  const shown = answer.results.length;
  const page = searchQuery.page > 1 ? `Page ${searchQuery.page} of results` : shown === 1 ? 'One result' : `${shown} results`;
  return [
    top(scene, { ...searchQuery, engine: answer.engine }),
    h(
      'main',
      {},
      h('p', { class: 'count', role: 'status' }, `${page} from ${answer.engine}, in ${time(answer.elapsedMs)}`),
      shown === 0 && h('p', {}, 'No results. Try other or fewer search terms.'),
      h('ol', { class: 'results', id: 'results', tabindex: -1 }, ...answer.results.map((found) => result(scene.go, found))),
      pages(scene.go, { ...searchQuery, engine: answer.engine }, answer.more),
      route(answer),
    ),
  ];
}

function result(go: Go, { title, url, snippet }: SearchResult): HTMLLIElement {
  return h(
    'li',
    {},
    h('h2', { dir: 'auto' }, anchorTo(go, { at: 'reader', url }, {}, title || url)),
    h('p', { class: 'where' }, where(url)),
    snippet !== '' && h('p', { class: 'snippet', dir: 'auto' }, snippet),
    h('p', { class: 'aside' }, h('button', { type: 'button', class: 'plain', onclick: () => go({ at: 'leave', url }) }, 'open directly in this browser…')),
  );
}

// Host and path of a result, shortened.
export function where(text: string): string {
  const MAX_LETTERS = 80;
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return '';
  }
  const whole = [url.host, ...url.pathname.split('/').filter(Boolean)].join(' › ');
  const letters = [...whole];
  return letters.length <= MAX_LETTERS ? whole : `${letters.slice(0, MAX_LETTERS).join('')}…`;
}

function pages(go: Go, searchQuery: Query, more: boolean): Node {
  if (searchQuery.page === 1 && !more) return document.createTextNode('');
  const to = (page: number, rel: string, kind: string, words: string) =>
    anchorTo(go, { at: 'results', query: { ...searchQuery, page } }, { class: kind, rel }, words);
  return h(
    'nav',
    { class: 'pages', 'aria-label': 'Pages of results' },
    searchQuery.page > 1 ? to(searchQuery.page - 1, 'prev', 'button quiet', '← Previous') : h('span'),
    h('span', {}, `Page ${searchQuery.page}`),
    more ? to(searchQuery.page + 1, 'next', 'button', 'Next →') : h('span'),
  );
}

// The view of a failure, with advice and the failure's own message.
export function failureView(scene: Scene, error: unknown, retry: () => void, searchQuery?: Query): Node[] {
  const { title, words, detail } = explain(error);
  return [top(scene, searchQuery), messageView(title, [h('p', {}, words), detail !== '' && h('p', { class: 'said' }, detail), choices(button('Try again', retry))])];
}

export const messageView = (title: string, children: (Node | false)[]): HTMLElement =>
  h('main', { class: 'words', role: 'alert' }, h('h1', {}, title), ...children);

export const choices = (...buttons: Node[]): HTMLElement => h('div', { class: 'choices' }, ...buttons);

export const button = (words: string, action: () => void, kind = 'button'): HTMLButtonElement =>
  h('button', { type: 'button', class: kind, onclick: action }, words);

// A warning about a failure of the client's start.
export function warning(error: unknown, retry: () => void): HTMLElement {
  const { title, words, detail } = explain(error);
  return h(
    'div',
    { class: 'warn', role: 'alert' },
    h('b', {}, title),
    h('br'),
    words,
    detail !== '' && h('span', { class: 'said' }, ` ${detail}`),
    ' ',
    button('Try again', retry, 'plain'),
  );
}

// The confirmation before a page is opened outside of the overlay. It has a button instead of an anchor, because browsers may resolve the
// names of anchors in advance.
export function leave(scene: Scene, url: URL): Node[] {
  const host = h('b', {}, url.host);
  return [
    h('header', { class: 'top' }, brand(scene.go)),
    h(
      'main',
      { class: 'words' },
      h('h1', {}, 'Open this page directly in your browser?'),
      h('p', { class: 'target' }, url.href),
      h(
        'p',
        {},
        host, ' would see your own address, and your network’s provider would see that you visit it. The URL comes from an exit, which ' +
          'could have made it up for this one search: then its target would link the query with your address.',
      ),
      choices(
        button('Read it through the overlay', () => scene.go({ at: 'reader', url: url.href })),
        button('Open it in this browser', () => window.open(url, '_blank', 'noopener,noreferrer'), 'button quiet'),
      ),
    ),
  ];
}

export const failureMessage = ({ title, words }: FailureText, ...more: (Node | false)[]): HTMLElement => messageView(title, [h('p', {}, words), ...more]);
