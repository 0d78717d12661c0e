// The two forms by which a volunteer chooses limits and, if wanted, engines to ask for others.
import type { VolunteerLimits } from '../umbel';
import { h, the } from '../page/dom';

// Engines that a page can ask for others, under the names by which exits offer them. None yet, for the library offers none: until
// then the choice isn't shown.
export const ENGINES: readonly { name: string; words: string }[] = [];

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

// Shows `limits` and calls `changed` with what is chosen from then on.
export function bindLimits(limits: VolunteerLimits, changed: (limits: VolunteerLimits) => void): void {
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
  the('exit').hidden = ENGINES.length === 0;
  const boxes = ENGINES.map(({ name, words }) => {
    const box = h('input', { type: 'checkbox', name, checked: limits.searchEngines?.includes(name) ?? false });
    engines.append(h('label', { class: 'check' }, box, words));
    return box;
  });

  const read = () => {
    const chosen: VolunteerLimits = {};
    if (speed.value) chosen.bytesPerSecond = Number(speed.value);
    if (total.value) chosen.bytesTotal = Number(total.value);
    if (power.checked) chosen.onlyOnPower = true;
    if (unmetered.checked) chosen.onlyUnmetered = true;
    const asked = boxes.filter((box) => box.checked).map((box) => box.name);
    if (asked.length > 0) chosen.searchEngines = asked;
    changed(chosen);
  };
  for (const one of [form, engines]) {
    one.addEventListener('change', read);
    one.addEventListener('submit', (event) => event.preventDefault());
  }
}
