// The search page: it is itself the client. Whoever serves it sees that somebody opened it, and nothing of what is asked.
import '@page/keys.js';

import { h, the, write } from '../page/dom';
import { explain, sentence } from '../page/words';
import { here } from '../page/here';
import { connect, type Progress, type SearchAnswer, type Umbel } from '../umbel';
import { HOME, fromFragment, fromState, query, type Place, type Query } from './place';
import { ReadError, read, view, type Reading } from './reader';
import { brand, offer } from './parts';
import { button, choices, home, leave, results, searching, told, trouble, warning } from './views';

const STEPS: Record<Progress, string> = {
  module: 'Starting…',
  consensus: 'Verifying the list of relays…',
  channel: 'Opening a channel to the first relay…',
  circuit: 'Building a path of three relays…',
  ready: '',
};
// Answers kept for going back and forth without asking again: each asking shows the question to an exit.
const MAX_KEPT = 50;

let umbel: Promise<Umbel> | undefined;
let engines: readonly string[] = [];
let step: string = STEPS.module;
let shown = 0;
const answers = new Map<string, SearchAnswer>();
const readings = new Map<string, Reading>();

function keep<V>(map: Map<string, V>, key: string, value: V): void {
  map.set(key, value);
  const oldest = map.keys().next().value;
  if (map.size > MAX_KEPT && oldest !== undefined) map.delete(oldest);
}

function tellStep(words: string): void {
  step = words;
  const line = document.getElementById('progress');
  if (line) write(line, words);
}

// The client, begun if there is none or the last one failed.
function client(): Promise<Umbel> {
  umbel ??= connect({ onprogress: (now) => tellStep(STEPS[now]) }).then(
    (ready) => {
      // The one that is asked by default comes first.
      engines = ready.engines().map(({ name }) => name);
      offer(engines);
      return ready;
    },
    (error: unknown) => {
      umbel = undefined;
      tellStep('');
      throw error;
    },
  );
  return umbel;
}

// A client whose way is gone is not asked again.
function forget(error: unknown): void {
  if (['closed', 'network'].includes(String((error as { kind?: unknown }).kind))) {
    umbel?.then((gone) => gone.close()).catch(() => undefined);
    umbel = undefined;
  }
}

function put(nodes: Node[]): void {
  the('page').replaceChildren(...nodes);
  tellStep(step);
}

// Goes to a place as a person does, so that "back" leads here again.
function go(place: Place): void {
  history.pushState(place, '', location.pathname);
  void show(place);
  window.scrollTo(0, 0);
}

async function show(place: Place): Promise<void> {
  shown += 1;
  const mine = shown;
  const still = () => mine === shown;
  switch (place.at) {
    case 'home':
      return showHome(still);
    case 'results':
      return showResults(place.query, still);
    case 'reader':
      return showReader(new URL(place.url), still);
    case 'leave':
      put(leave({ go, engines }, new URL(place.url)));
  }
}

async function showHome(still: () => boolean): Promise<void> {
  put(home({ go, engines }));
  document.querySelector<HTMLInputElement>('#q')?.focus();
  try {
    await client();
    if (still() && engines.length === 0) tellStep('No exit of this network offers a search engine.');
  } catch (error) {
    if (still()) the('progress').replaceWith(warning(error, () => void show(HOME)));
  }
}

async function showResults(asked: Query, still: () => boolean): Promise<void> {
  const key = JSON.stringify(asked);
  const kept = answers.get(key);
  if (kept) return put(results({ go, engines }, asked, kept));
  put(searching({ go, engines }, asked));
  try {
    const ready = await client();
    if (still()) tellStep('Searching…');
    const answer = await ready.search(asked);
    keep(answers, key, answer);
    if (still()) put(results({ go, engines }, asked, answer));
  } catch (error) {
    forget(error);
    if (still()) put(trouble({ go, engines }, error, () => void show({ at: 'results', query: asked }), asked));
  } finally {
    if (still()) tellStep('');
  }
}

async function showReader(url: URL, still: () => boolean): Promise<void> {
  const kept = readings.get(url.href);
  if (kept) return put(view(go, kept));
  put(searching({ go, engines }, query('')));
  try {
    const ready = await client();
    if (still()) tellStep(`Fetching the page from ${url.host} through the overlay…`);
    const reading = await read(ready, url);
    keep(readings, url.href, reading);
    if (still()) put(view(go, reading));
  } catch (error) {
    forget(error);
    if (!still()) return;
    const again = button('Try again', () => void show({ at: 'reader', url: url.href }));
    const out = button('Open it in this browser…', () => go({ at: 'leave', url: url.href }), 'button quiet');
    const { title, words, said } = error instanceof ReadError ? { title: 'This page can’t be shown', words: sentence(error.message), said: '' } : explain(error);
    put([h('header', { class: 'top' }, brand(go)), told({ title, words: said ? `${words} ${said}` : words }, choices(again, out))]);
  } finally {
    if (still()) tellStep('');
  }
}

// The place that the address or this history entry leads to. What the address says is taken out of it.
function begin(): void {
  const asked = fromFragment(location.hash);
  const place = asked.at === 'home' ? (fromState(history.state) ?? HOME) : asked;
  history.replaceState(place, '', location.pathname);
  void show(place);
}

window.addEventListener('popstate', (event) => {
  // A fragment that was typed into the address has no state.
  if (location.hash && fromFragment(location.hash).at !== 'home') begin();
  else void show(fromState(event.state) ?? HOME);
});
// A page that was put aside and comes back has let its client go.
window.addEventListener('pageshow', ({ persisted }) => {
  if (persisted) umbel = undefined;
});
for (const place of document.querySelectorAll('.here')) write(place, here());
// A browser that only guesses what will be wanted must not open channels for it.
if ((document as { prerendering?: boolean }).prerendering) document.addEventListener('prerenderingchange', begin, { once: true });
else begin();
