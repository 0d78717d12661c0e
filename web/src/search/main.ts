// The search page, which is itself the client. Its server sees that a browser loads the page, but no query.
import '@page/keys.js';

import { h, byId, write } from '../page/dom';
import { explain, sentence } from '../page/words';
import { serverUrl } from '../page/serverUrl';
import { connect, type Progress, type SearchAnswer, type Umbel } from '../umbel';
import { HOME, fromFragment, fromState, query, type Place, type Query } from './place';
import { ReadError, read, view, type Reading } from './reader';
import { brand, offerEngines } from './parts';
import { button, choices, home, leave, results, searching, failureMessage, failureView, warning } from './views';

const STEPS: Record<Progress, string> = {
  module: 'Starting…',
  consensus: 'Verifying the list of relays…',
  channel: 'Opening a channel to the first relay…',
  circuit: 'Building a path over several relays…',
  ready: '',
};
// Maximum number of stored answers, and of stored pages. A stored answer is shown without a new query, because an exit reads each query.
const MAX_STORED = 50;

let umbel: Promise<Umbel> | undefined;
let engines: readonly string[] = [];
let step: string = STEPS.module;
// Number of the current view.
let currentView = 0;
const answers = new Map<string, SearchAnswer>();
const readings = new Map<string, Reading>();

function store<V>(map: Map<string, V>, key: string, value: V): void {
  map.set(key, value);
  const oldest = map.keys().next().value;
  if (map.size > MAX_STORED && oldest !== undefined) map.delete(oldest);
}

function showStep(words: string): void {
  step = words;
  const line = document.getElementById('progress');
  if (line) write(line, words);
}

// The client. Starts a client if there is none, or if the last client failed.
function client(): Promise<Umbel> {
  umbel ??= connect({ onprogress: (now) => showStep(STEPS[now]) }).then(
    (ready) => {
      // The default engine is first.
      engines = ready.engines().map(({ name }) => name);
      offerEngines(engines);
      return ready;
    },
    (error: unknown) => {
      umbel = undefined;
      showStep('');
      throw error;
    },
  );
  return umbel;
}

// Closes and discards the client if `error` reports the loss of its channel or of the network.
function discard(error: unknown): void {
  if (['closed', 'network'].includes(String((error as { kind?: unknown }).kind))) {
    umbel?.then((client) => client.close()).catch(() => undefined);
    umbel = undefined;
  }
}

function render(nodes: Node[]): void {
  byId('page').replaceChildren(...nodes);
  showStep(step);
}

// Shows a place, with a new entry in the history.
function go(place: Place): void {
  history.pushState(place, '', location.pathname);
  void show(place);
  window.scrollTo(0, 0);
}

async function show(place: Place): Promise<void> {
  currentView += 1;
  const ownView = currentView;
  const isCurrent = () => ownView === currentView;
  switch (place.at) {
    case 'home':
      return showHome(isCurrent);
    case 'results':
      return showResults(place.query, isCurrent);
    case 'reader':
      return showReader(new URL(place.url), isCurrent);
    case 'leave':
      render(leave({ go, engines }, new URL(place.url)));
  }
}

async function showHome(isCurrent: () => boolean): Promise<void> {
  render(home({ go, engines }));
  document.querySelector<HTMLInputElement>('#q')?.focus();
  try {
    await client();
    if (isCurrent() && engines.length === 0) showStep('No exit of this network offers a search engine.');
  } catch (error) {
    if (isCurrent()) byId('progress').replaceWith(warning(error, () => void show(HOME)));
  }
}

async function showResults(searchQuery: Query, isCurrent: () => boolean): Promise<void> {
  const key = JSON.stringify(searchQuery);
  const stored = answers.get(key);
  if (stored) return render(results({ go, engines }, searchQuery, stored));
  render(searching({ go, engines }, searchQuery));
  try {
    const ready = await client();
    if (isCurrent()) showStep('Searching…');
    const answer = await ready.search(searchQuery);
    store(answers, key, answer);
    if (isCurrent()) render(results({ go, engines }, searchQuery, answer));
  } catch (error) {
    discard(error);
    if (isCurrent()) render(failureView({ go, engines }, error, () => void show({ at: 'results', query: searchQuery }), searchQuery));
  } finally {
    if (isCurrent()) showStep('');
  }
}

async function showReader(url: URL, isCurrent: () => boolean): Promise<void> {
  const stored = readings.get(url.href);
  if (stored) return render(view(go, stored));
  render(searching({ go, engines }, query('')));
  try {
    const ready = await client();
    if (isCurrent()) showStep(`Fetching the page from ${url.host} through the overlay…`);
    const reading = await read(ready, url);
    store(readings, url.href, reading);
    if (isCurrent()) render(view(go, reading));
  } catch (error) {
    discard(error);
    if (!isCurrent()) return;
    const again = button('Try again', () => void show({ at: 'reader', url: url.href }));
    const out = button('Open it in this browser…', () => go({ at: 'leave', url: url.href }), 'button quiet');
    const { title, words, detail } = error instanceof ReadError ? { title: 'This page can’t be shown', words: sentence(error.message), detail: '' } : explain(error);
    render([h('header', { class: 'top' }, brand(go)), failureMessage({ title, words: detail ? `${words} ${detail}` : words }, choices(again, out))]);
  } finally {
    if (isCurrent()) showStep('');
  }
}

// Shows the place of the fragment, or else of the history entry, and removes the fragment from the URL.
function showFirstPlace(): void {
  const requested = fromFragment(location.hash);
  const place = requested.at === 'home' ? (fromState(history.state) ?? HOME) : requested;
  history.replaceState(place, '', location.pathname);
  void show(place);
}

window.addEventListener('popstate', (event) => {
  // A fragment that the user has typed has no state.
  if (location.hash && fromFragment(location.hash).at !== 'home') showFirstPlace();
  else void show(fromState(event.state) ?? HOME);
});
// The client of a page is closed when the browser caches the page.
window.addEventListener('pageshow', ({ persisted }) => {
  if (persisted) umbel = undefined;
});
for (const element of document.querySelectorAll('.here')) write(element, serverUrl());
// A prerendered page must not open channels before the user opens the page.
if ((document as { prerendering?: boolean }).prerendering) document.addEventListener('prerenderingchange', showFirstPlace, { once: true });
else showFirstPlace();
