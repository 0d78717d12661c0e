// Elements that the views of the search page share, with the texts of src/page/layout.rs.
import icon from '@page/icon.svg';

import { h } from '../page/dom';
import { MAX_TERMS_LEN, address, query, type Place, type Query } from './place';

export type Go = (place: Place) => void;

const LANGUAGES: readonly [string, string][] = [
  ['ar', 'العربية'],
  ['cs', 'Čeština'],
  ['de', 'Deutsch'],
  ['en', 'English'],
  ['es', 'Español'],
  ['fr', 'Français'],
  ['hi', 'हिन्दी'],
  ['it', 'Italiano'],
  ['ja', '日本語'],
  ['ko', '한국어'],
  ['nl', 'Nederlands'],
  ['pl', 'Polski'],
  ['pt', 'Português'],
  ['ru', 'Русский'],
  ['tr', 'Türkçe'],
  ['zh', '中文'],
];

// An anchor to a place within the page. The anchor also leads to this place if it is opened in another tab.
export function anchorTo(go: Go, place: Place, attributes: Record<string, string>, ...words: (string | Node)[]): HTMLAnchorElement {
  const follow = (event: Event) => {
    if (event instanceof MouseEvent && (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) return;
    event.preventDefault();
    go(place);
  };
  return h('a', { ...attributes, href: address(place), onclick: follow }, ...words);
}

export const brand = (go: Go): HTMLAnchorElement =>
  anchorTo(go, { at: 'home' }, { class: 'brand' }, h('img', { src: icon, alt: '', width: 28, height: 28 }), h('span', {}, 'Umbel'));

// Fills `choice` with the engines. The first engine is the default.
function fill(choice: HTMLSelectElement, engines: readonly string[], chosen: string | undefined): void {
  choice.replaceChildren(...engines.map((name) => h('option', { value: name, selected: name === chosen }, name)));
  // With fewer than two engines, the choice is hidden.
  if (choice.parentElement) choice.parentElement.hidden = engines.length < 2;
}

// Offers engines in the displayed search form, as soon as the network is known.
export function offerEngines(engines: readonly string[]): void {
  const choice = document.querySelector<HTMLSelectElement>('select[name=engine]');
  if (choice) fill(choice, engines, choice.value);
}

// The search form with a query. `offerEngines` adds the engines when the network is known.
export function form(go: Go, engines: readonly string[], searchQuery: Query | undefined, focus: boolean): HTMLFormElement {
  const box = h('input', {
    id: 'q', type: 'search', name: 'q', value: searchQuery?.terms ?? '', placeholder: 'Search terms', 'aria-label': 'Search',
    maxlength: MAX_TERMS_LEN, required: true, autofocus: focus, autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false',
    enterkeyhint: 'search',
  });
  const engine = h('select', { name: 'engine' });
  const choice = h('label', {}, 'Engine ', engine);
  fill(engine, engines, searchQuery?.engine);
  const language = h(
    'select',
    { name: 'language' },
    h('option', { value: '' }, 'any'),
    ...LANGUAGES.map(([tag, name]) => h('option', { value: tag, lang: tag, selected: tag === searchQuery?.language }, name)),
  );
  const submit = (event: Event) => {
    event.preventDefault();
    const next = query(box.value, engine.value || searchQuery?.engine, language.value);
    if (next.terms) go({ at: 'results', query: next });
  };
  return h(
    'form',
    { class: 'ask', role: 'search', onsubmit: submit },
    h('div', { class: 'box' }, box, h('button', { type: 'submit' }, 'Search')),
    h(
      'div',
      { class: 'options' },
      choice,
      h('label', {}, 'Language ', language),
    ),
  );
}
