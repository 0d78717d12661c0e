// The volunteer's page: joins the switch, the limits and the figures to the relay in `umbel`.
import { the, write } from '../page/dom';
import { bytes, explain, rate } from '../page/words';
import { here } from '../page/here';
import { volunteer, type Network, type SearchEngineState, type Volunteer, type VolunteerState } from '../umbel';
import { engineOrigins } from '../umbel/engines';
import { load as loadCore } from '../umbel/module';
import { findNetwork } from '../umbel/network';
import { draw, Samples } from './graph';
import { keep, load, type Limits } from './settings';
import { bindLimits } from './limits';
import { allowOnly } from './policy';
import { limitsInShort, tell } from './told';

const OFF: VolunteerState = {
  on: false, phase: 'off', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0,
};

const settings = load();
const samples = new Samples();
const toggle = the<HTMLButtonElement>('switch');
let state = OFF;
// The network, once it was found; with the engines that this page can ask, once it has narrowed what it may speak to.
let network: Network | undefined;
let narrowed = false;
const unusable = new Map<string, SearchEngineState>();
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
  choice.tell(state.on ? [...unusable.values(), ...state.searchEngines] : []);
  write(the('searches'), state.searches === 0 ? '' : `Asked and answered for others: ${state.searches}.`);
  document.title = state.phase === 'off' ? 'Umbel volunteer' : `${title} · Umbel volunteer`;
}

function showChoice(): void {
  toggle.setAttribute('aria-checked', String(settings.on));
  write(the('limits-now'), limitsInShort(settings.limits));
  write(the('exit-now'), settings.limits.searchEngines?.join(', ') ?? 'off');
  the('exit-but').hidden = settings.limits.searchEngines === undefined;
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

// Finds out which network this is, and offers the choice of its engines.
async function find(): Promise<Network> {
  if (network) return network;
  const found = await findNetwork();
  network ??= found;
  if (network === found) choice.offer(found.engines ?? []);
  return network;
}

// From here on the page speaks to directories and these engines, and to nobody else.
async function prepare(): Promise<Network> {
  const found = await find();
  await loadCore();
  if (narrowed) return found;
  const origins = (found.engines ?? []).flatMap((engine) => {
    try {
      return engineOrigins(engine);
    } catch (error) {
      unusable.set(engine.name, { name: engine.name, offered: false, why: error instanceof Error ? error.message : '' });
      return [];
    }
  });
  allowOnly(found.directories, origins);
  narrowed = true;
  return found;
}

// Those of the limits that can be kept: what was chosen once may be named no more.
function usable(limits: Limits): Limits {
  const { searchEngines, ...others } = limits;
  const can = (name: string) => !unusable.has(name) && network?.engines?.some((engine) => engine.name === name) === true;
  return searchEngines ? { ...others, searchEngines: searchEngines.filter(can) } : others;
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
