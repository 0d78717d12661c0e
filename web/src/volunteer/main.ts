// The volunteer's page: connects the switch, the limits and the statistics with the relay of `umbel`.
import { byId, write } from '../page/dom';
import { bytes, explain, rate } from '../page/words';
import { serverUrl } from '../page/serverUrl';
import { volunteer, type Network, type SearchEngine, type Volunteer, type VolunteerLimits, type VolunteerState } from '../umbel';
import { engineOrigins } from '../umbel/engines';
import { load as loadCore } from '../umbel/module';
import { findNetwork } from '../umbel/network';
import { draw, Samples } from './graph';
import { isSame, store, load, type Limits } from './settings';
import { bindLimits, type OfferedEngine } from './limits';
import { allowOnly } from './policy';
import { limitsInShort, stateLines } from './texts';

const OFF: VolunteerState = {
  on: false, phase: 'off', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0,
};

const settings = load();
const samples = new Samples();
const toggle = byId<HTMLButtonElement>('switch');
let state = OFF;
// The network and its engines, when they are known.
let network: Network | undefined;
let engines: OfferedEngine[] = [];
// Whether the page has restricted the origins that it may fetch from.
let restricted = false;
// The relay, if it is turned on. Each change of the switch waits for the previous change.
let relay: Promise<Volunteer | undefined> = Promise.resolve(undefined);

function show(next: VolunteerState): void {
  state = next;
  const { state: title, why } = stateLines(state);
  byId('power').dataset['phase'] = state.phase;
  write(byId('state'), title);
  write(byId('why'), why);
  write(byId('circuits'), String(state.circuits));
  write(byId('now'), rate(state.bytesNow));
  write(byId('total'), bytes(state.bytesTotal));
  engineChoice.showStates(state.on ? state.searchEngines : []);
  write(byId('searches'), state.searches === 0 ? '' : `Queries answered for others: ${state.searches}.`);
  document.title = state.phase === 'off' ? 'Umbel volunteer' : `${title} · Umbel volunteer`;
}

function showSettings(): void {
  toggle.setAttribute('aria-checked', String(settings.on));
  const limits = usableLimits(settings.limits);
  const { searchEngines } = limits;
  write(byId('limits-now'), limitsInShort(limits));
  write(byId('exit-now'), searchEngines?.join(', ') || 'off');
  byId('exit-but').hidden = !searchEngines?.length;
}

// Adds a sample each second, and draws the graph if the page is visible.
function drawGraph(): void {
  // There are no samples before the first start.
  if (state.on || samples.values.length > 0) samples.add(Date.now(), state.bytesNow);
  if (document.hidden) return;
  const { line, area, top } = draw(samples.values);
  byId('graph-line').setAttribute('d', line);
  byId('graph-area').setAttribute('d', area);
  write(byId('graph-top'), line === '' ? '' : rate(top));
}

// The engine with the origins of its queries. The core determines the origins.
function withOrigins({ name, title, description }: SearchEngine): OfferedEngine {
  const names = title === undefined ? { name } : { name, title };
  try {
    return { ...names, origins: engineOrigins({ name, description }) };
  } catch (error) {
    return { ...names, origins: [], why: error instanceof Error ? error.message : 'its description is invalid' };
  }
}

// Loads the network's description, and offers the choice of its engines.
async function loadNetwork(): Promise<Network> {
  const found = network ?? await findNetwork();
  if (found.engines?.length) await loadCore();
  if (network) return network;
  network = found;
  engines = (found.engines ?? []).map(withOrigins);
  engineChoice.offer(engines);
  showSettings();
  return network;
}

// Loads the core, and restricts the page's requests to the directories and these engines.
async function prepare(): Promise<Network> {
  const found = await loadNetwork();
  await loadCore();
  if (restricted) return found;
  allowOnly(found.directories, engines.flatMap(({ origins }) => origins));
  restricted = true;
  return found;
}

// The limits without chosen engines that the network no longer has, or has at another address.
function usableLimits(limits: Limits): VolunteerLimits & { searchEngines?: string[] } {
  const { searchEngines, ...others } = limits;
  if (!searchEngines) return others;
  const same = network ? searchEngines.filter((chosen) => engines.some((engine) => isSame(chosen, engine))) : searchEngines;
  return { ...others, searchEngines: same.map(({ name }) => name) };
}

async function start(): Promise<Volunteer | undefined> {
  try {
    show({ ...OFF, on: true, phase: 'starting' });
    const found = await prepare();
    return await volunteer({ network: found, limits: usableLimits(settings.limits), onstate: show });
  } catch (error) {
    const { title, words, detail } = explain(error);
    show({ ...OFF, phase: 'error', why: `${title}. ${words} Turn the switch off and on to try again.` });
    if (detail) console.info(detail);
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
  store(settings);
  showSettings();
  relay = relay.then((running) => {
    // The user may have turned the switch again meanwhile.
    if (on !== settings.on) return running;
    if (!on) return stop(running);
    return running ?? start();
  });
}

const engineChoice = bindLimits(settings.limits, (limits) => {
  settings.limits = limits;
  store(settings);
  showSettings();
  relay = relay.then((running) => {
    running?.setLimits(usableLimits(limits));
    return running;
  });
});
for (const element of document.querySelectorAll('.here')) write(element, serverUrl());
toggle.addEventListener('click', () => turn(!settings.on));
setInterval(drawGraph, 1000);
document.addEventListener('visibilitychange', drawGraph);
drawGraph();
show(OFF);
showSettings();
toggle.disabled = false;
// A failure is ignored, because the start loads the description again.
loadNetwork().catch(() => undefined);
// Restores the state from before a reload.
if (settings.on) turn(true);
