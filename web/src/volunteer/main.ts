// The volunteer's page: joins the switch, the limits and the figures to the relay in `umbel`.
import { the, write } from '../page/dom';
import { bytes, explain, rate } from '../page/words';
import { here } from '../page/here';
import { volunteer, type Network, type SearchEngine, type Volunteer, type VolunteerLimits, type VolunteerState } from '../umbel';
import { engineOrigins } from '../umbel/engines';
import { load as loadCore } from '../umbel/module';
import { findNetwork } from '../umbel/network';
import { draw, Samples } from './graph';
import { isSame, keep, load, type Limits } from './settings';
import { bindLimits, type OfferedEngine } from './limits';
import { allowOnly } from './policy';
import { limitsInShort, tell } from './told';

const OFF: VolunteerState = {
  on: false, phase: 'off', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0,
};

const settings = load();
const samples = new Samples();
const toggle = the<HTMLButtonElement>('switch');
let state = OFF;
// The network, once it was found, and the engines that it names.
let network: Network | undefined;
let engines: OfferedEngine[] = [];
// The page has narrowed what it may fetch from.
let narrowed = false;
// The relay, once it is asked for; turning it off and on again while it starts is done in order.
let relay: Promise<Volunteer | undefined> = Promise.resolve(undefined);

function show(next: VolunteerState): void {
  state = next;
  const { state: title, why } = tell(state);
  the('power').dataset['phase'] = state.phase;
  write(the('state'), title);
  write(the('why'), why);
  write(the('circuits'), String(state.circuits));
  write(the('now'), rate(state.bytesNow));
  write(the('total'), bytes(state.bytesTotal));
  choice.tell(state.on ? state.searchEngines : []);
  write(the('searches'), state.searches === 0 ? '' : `Queries answered for others: ${state.searches}.`);
  document.title = state.phase === 'off' ? 'Umbel volunteer' : `${title} · Umbel volunteer`;
}

function showChoice(): void {
  toggle.setAttribute('aria-checked', String(settings.on));
  const limits = usable(settings.limits);
  const { searchEngines } = limits;
  write(the('limits-now'), limitsInShort(limits));
  write(the('exit-now'), searchEngines?.join(', ') || 'off');
  the('exit-but').hidden = !searchEngines?.length;
}

// Draws once a second while somebody looks.
function drawGraph(): void {
  // Nothing to draw before it has ever been on.
  if (state.on || samples.values.length > 0) samples.add(Date.now(), state.bytesNow);
  if (document.hidden) return;
  const { line, area, top } = draw(samples.values);
  the('graph-line').setAttribute('d', line);
  the('graph-area').setAttribute('d', area);
  write(the('graph-top'), line === '' ? '' : rate(top));
}

// Where an engine is asked: the core says so, which asks.
function located({ name, title, description }: SearchEngine): OfferedEngine {
  const called = title === undefined ? { name } : { name, title };
  try {
    return { ...called, origins: engineOrigins({ name, description }) };
  } catch (error) {
    return { ...called, origins: [], why: error instanceof Error ? error.message : 'its description is invalid' };
  }
}

// Finds out which network this is, and offers the choice of its engines.
async function find(): Promise<Network> {
  const found = network ?? await findNetwork();
  if (found.engines?.length) await loadCore();
  if (network) return network;
  network = found;
  engines = (found.engines ?? []).map(located);
  choice.offer(engines);
  showChoice();
  return network;
}

// From here on the page fetches from directories and these engines, and from nobody else.
async function prepare(): Promise<Network> {
  const found = await find();
  await loadCore();
  if (narrowed) return found;
  allowOnly(found.directories, engines.flatMap(({ origins }) => origins));
  narrowed = true;
  return found;
}

// The limits as they can be kept: what was chosen once may be named no more, or be another engine now.
function usable(limits: Limits): VolunteerLimits & { searchEngines?: string[] } {
  const { searchEngines, ...others } = limits;
  if (!searchEngines) return others;
  const same = network ? searchEngines.filter((chosen) => engines.some((engine) => isSame(chosen, engine))) : searchEngines;
  return { ...others, searchEngines: same.map(({ name }) => name) };
}

async function start(): Promise<Volunteer | undefined> {
  try {
    show({ ...OFF, on: true, phase: 'starting' });
    const found = await prepare();
    return await volunteer({ network: found, limits: usable(settings.limits), onstate: show });
  } catch (error) {
    const { title, words, said } = explain(error);
    show({ ...OFF, phase: 'error', why: `${title}. ${words} Turn the switch off and on to try again.` });
    if (said) console.info(said);
    return undefined;
  }
}

async function stop(running: Volunteer | undefined): Promise<undefined> {
  try {
    await running?.stop();
  } catch (error) {
    console.info(error);
  }
  show({ ...OFF, bytesTotal: state.bytesTotal });
  return undefined;
}

function turn(on: boolean): void {
  settings.on = on;
  keep(settings);
  showChoice();
  relay = relay.then((running) => {
    // It may have been turned back meanwhile.
    if (on !== settings.on) return running;
    if (!on) return stop(running);
    return running ?? start();
  });
}

const choice = bindLimits(settings.limits, (limits) => {
  settings.limits = limits;
  keep(settings);
  showChoice();
  relay = relay.then((running) => {
    running?.setLimits(usable(limits));
    return running;
  });
});
for (const place of document.querySelectorAll('.here')) write(place, here());
toggle.addEventListener('click', () => turn(!settings.on));
setInterval(drawGraph, 1000);
document.addEventListener('visibilitychange', drawGraph);
drawGraph();
show(OFF);
showChoice();
toggle.disabled = false;
// If it can't be found now, it is looked for again when it is needed.
find().catch(() => undefined);
// Where it was before a reload.
if (settings.on) turn(true);
