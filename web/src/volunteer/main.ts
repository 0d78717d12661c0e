// The volunteer's page: joins the switch, the limits and the figures to the relay in `umbel`.
import { the, write } from '../page/dom';
import { bytes, explain, rate } from '../page/words';
import { here } from '../page/here';
import { volunteer, type Volunteer, type VolunteerState } from '../umbel';
import { draw, Samples } from './graph';
import { keep, load } from './settings';
import { bindLimits } from './limits';
import { limitsInShort, tell } from './told';

const OFF: VolunteerState = { on: false, phase: 'off', gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0 };

const settings = load();
const samples = new Samples();
const toggle = the<HTMLButtonElement>('switch');
let state = OFF;
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

async function start(): Promise<Volunteer | undefined> {
  try {
    return await volunteer({ limits: settings.limits, onstate: show });
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

bindLimits(settings.limits, (limits) => {
  settings.limits = limits;
  keep(settings);
  showChoice();
  relay = relay.then((running) => {
    running?.setLimits(limits);
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
// Where it was before a reload.
if (settings.on) turn(true);
