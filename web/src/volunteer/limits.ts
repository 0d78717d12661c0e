// The two forms for a volunteer's limits, and for the engines to query for others.
import type { SearchEngineState } from '../umbel';
import { h, byId, write } from '../page/dom';
import { isSame, type ChosenEngine, type Limits } from './settings';

// Selects `value`. A stored value without an option gets one.
function choose(select: HTMLSelectElement, value: number | undefined): void {
  const text = value === undefined ? '' : String(value);
  if (![...select.options].some((option) => option.value === text)) select.add(h('option', { value: text }, text));
  select.value = text;
}

// Whether the browser reports the conditions of the limits.
export function reported(navigator: Navigator): { power: boolean; unmetered: boolean } {
  return { power: 'getBattery' in navigator, unmetered: 'connection' in navigator };
}

// An engine of the network. If it can't be chosen, `why` is the reason.
export interface OfferedEngine extends ChosenEngine {
  title?: string;
  why?: string;
}

// The choice of engines, which is shown when the network is known and has engines.
export interface EngineChoice {
  offer(engines: readonly OfferedEngine[]): void;
  // Shows the states of the chosen engines.
  showStates(states: readonly SearchEngineState[]): void;
}

export function stateText(state: SearchEngineState | undefined): string {
  if (!state) return '';
  if (state.offered) return 'It answers. You are querying it for others.';
  return state.why ? `Not queried for others: ${state.why}` : 'Testing whether this page can query it…';
}

export function shortOrigins(origins: readonly string[]): string {
  return origins.map((origin) => origin.replace(/^https:\/\//, '')).join(', ');
}

// The text for an engine that isn't ticked, although an engine of the same name was chosen.
export function movedText(chosen: ChosenEngine, now: ChosenEngine): string {
  return `You had chosen an engine of this name at ${shortOrigins(chosen.origins)}. Now it is at ${shortOrigins(now.origins)}, so it isn’t queried until you tick it again.`;
}

// Shows `limits`, and calls `changed` with each later choice.
export function bindLimits(limits: Limits, changed: (limits: Limits) => void): EngineChoice {
  const form = byId<HTMLFormElement>('limits-form');
  const field = <E extends HTMLElement>(name: string) => form.elements.namedItem(name) as unknown as E;
  const [speed, total] = [field<HTMLSelectElement>('rate'), field<HTMLSelectElement>('total')];
  const [power, unmetered] = [field<HTMLInputElement>('power'), field<HTMLInputElement>('unmetered')];
  const can = reported(navigator);
  power.disabled = !can.power;
  unmetered.disabled = !can.unmetered;
  byId('power-undisclosed').hidden = can.power;
  byId('unmetered-undisclosed').hidden = can.unmetered;
  choose(speed, limits.bytesPerSecond);
  choose(total, limits.bytesTotal);
  power.checked = can.power && limits.onlyOnPower === true;
  unmetered.checked = can.unmetered && limits.onlyUnmetered === true;

  const engines = byId('exit-form');
  const boxes: { box: HTMLInputElement; note: HTMLElement; engine: OfferedEngine; unticked: string }[] = [];

  const read = () => {
    const chosen: Limits = {};
    if (speed.value) chosen.bytesPerSecond = Number(speed.value);
    if (total.value) chosen.bytesTotal = Number(total.value);
    if (power.checked) chosen.onlyOnPower = true;
    if (unmetered.checked) chosen.onlyUnmetered = true;
    // Before the network is known, the stored choice of engines stays.
    const ticked = boxes.filter(({ box }) => box.checked).map(({ engine: { name, origins } }) => ({ name, origins }));
    const selected = boxes.length > 0 ? ticked : limits.searchEngines;
    if (selected?.length) chosen.searchEngines = selected;
    changed(chosen);
  };
  for (const element of [form, engines]) {
  element.addEventListener('change', read);
  element.addEventListener('submit', (event) => event.preventDefault());
  }

  return {
    offer: (named) => {
      byId('exit').hidden = named.length === 0;
      for (const engine of named) {
        const { name, title, origins, why } = engine;
        const chosen = limits.searchEngines?.find((stored) => stored.name === name);
        const same = chosen !== undefined && isSame(chosen, engine);
        const box = h('input', { type: 'checkbox', name, checked: same && why === undefined, disabled: why !== undefined });
        const unticked = why ? `It can’t be queried: ${why}` : chosen && !same ? movedText(chosen, engine) : '';
        const note = h('p', { class: 'note', role: 'status' }, unticked);
        engines.append(h('label', { class: 'check' }, box, `${title ?? name} `, h('small', {}, shortOrigins(origins))), note);
        boxes.push({ box, note, engine, unticked });
      }
    },
    showStates: (states) => {
      for (const { box, note, unticked } of boxes) {
        write(note, box.checked ? stateText(states.find(({ name }) => name === box.name)) : unticked);
      }
    },
  };
}
