// The two forms by which a volunteer chooses limits and, if wanted, engines to ask for others.
import type { SearchEngineState } from '../umbel';
import { h, the, write } from '../page/dom';
import { isSame, type ChosenEngine, type Limits } from './settings';

// A choice of `select`; one that isn't offered, kept from elsewhere, is offered too.
function choose(select: HTMLSelectElement, value: number | undefined): void {
  const text = value === undefined ? '' : String(value);
  if (![...select.options].some((option) => option.value === text)) select.add(h('option', { value: text }, text));
  select.value = text;
}

// Whether the browser tells what a limit needs to know.
export function told(navigator: Navigator): { power: boolean; unmetered: boolean } {
  return { power: 'getBattery' in navigator, unmetered: 'connection' in navigator };
}

// An engine that can be chosen, or why not.
export interface OfferedEngine extends ChosenEngine {
  title?: string;
  why?: string;
}

// The choice of engines, which is shown once the network is known and names any.
export interface EngineChoice {
  offer(engines: readonly OfferedEngine[]): void;
  // Says how those that are chosen stand.
  tell(states: readonly SearchEngineState[]): void;
}

export function standing(state: SearchEngineState | undefined): string {
  if (!state) return '';
  if (state.offered) return 'It answers. You are querying it for others.';
  return state.why ? `Not queried for others: ${state.why}` : 'Testing whether this page can query it…';
}

export function places(origins: readonly string[]): string {
  return origins.map((origin) => origin.replace(/^https:\/\//, '')).join(', ');
}

// What is to be said of an engine that isn't ticked though one of its name was.
export function moved(chosen: ChosenEngine, now: ChosenEngine): string {
  return `You had chosen an engine of this name at ${places(chosen.origins)}. Now it is at ${places(now.origins)}, so it isn’t queried until you tick it again.`;
}

// Shows `limits` and calls `changed` with what is chosen from then on.
export function bindLimits(limits: Limits, changed: (limits: Limits) => void): EngineChoice {
  const form = the<HTMLFormElement>('limits-form');
  const field = <E extends HTMLElement>(name: string) => form.elements.namedItem(name) as unknown as E;
  const [speed, total] = [field<HTMLSelectElement>('rate'), field<HTMLSelectElement>('total')];
  const [power, unmetered] = [field<HTMLInputElement>('power'), field<HTMLInputElement>('unmetered')];
  const can = told(navigator);
  power.disabled = !can.power;
  unmetered.disabled = !can.unmetered;
  the('power-untold').hidden = can.power;
  the('unmetered-untold').hidden = can.unmetered;
  choose(speed, limits.bytesPerSecond);
  choose(total, limits.bytesTotal);
  power.checked = can.power && limits.onlyOnPower === true;
  unmetered.checked = can.unmetered && limits.onlyUnmetered === true;

  const engines = the('exit-form');
  const boxes: { box: HTMLInputElement; note: HTMLElement; engine: OfferedEngine; unticked: string }[] = [];

  const read = () => {
    const chosen: Limits = {};
    if (speed.value) chosen.bytesPerSecond = Number(speed.value);
    if (total.value) chosen.bytesTotal = Number(total.value);
    if (power.checked) chosen.onlyOnPower = true;
    if (unmetered.checked) chosen.onlyUnmetered = true;
    // As long as the network isn't known, what was chosen before stays.
    const ticked = boxes.filter(({ box }) => box.checked).map(({ engine: { name, origins } }) => ({ name, origins }));
    const asked = boxes.length > 0 ? ticked : limits.searchEngines;
    if (asked?.length) chosen.searchEngines = asked;
    changed(chosen);
  };
  for (const one of [form, engines]) {
    one.addEventListener('change', read);
    one.addEventListener('submit', (event) => event.preventDefault());
  }

  return {
    offer: (named) => {
      the('exit').hidden = named.length === 0;
      for (const engine of named) {
        const { name, title, origins, why } = engine;
        const chosen = limits.searchEngines?.find((one) => one.name === name);
        const same = chosen !== undefined && isSame(chosen, engine);
        const box = h('input', { type: 'checkbox', name, checked: same && why === undefined, disabled: why !== undefined });
        const unticked = why ? `It can’t be queried: ${why}` : chosen && !same ? moved(chosen, engine) : '';
        const note = h('p', { class: 'untold', role: 'status' }, unticked);
        engines.append(h('label', { class: 'check' }, box, `${title ?? name} `, h('small', {}, places(origins))), note);
        boxes.push({ box, note, engine, unticked });
      }
    },
    tell: (states) => {
      for (const { box, note, unticked } of boxes) {
        write(note, box.checked ? standing(states.find(({ name }) => name === box.name)) : unticked);
      }
    },
  };
}
