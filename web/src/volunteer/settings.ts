// What the volunteer has chosen, kept in this browser: on or off, and the limits. Nothing else is kept here.
import type { VolunteerLimits } from '../umbel';

// An engine as it was chosen: by its name, and where it was to be asked. What the name means is said by whoever serves the network's
// description, each time; who has chosen one engine has not chosen another that is called the same.
export interface ChosenEngine {
  name: string;
  origins: string[];
}

export type Limits = Omit<VolunteerLimits, 'searchEngines'> & { searchEngines?: ChosenEngine[] };

export interface Settings {
  on: boolean;
  limits: Limits;
}

const KEY = 'umbel-volunteer';
// As many as a network names.
const MOST_ENGINES = 32;

// Modest on purpose: who wants more says so.
export const DEFAULTS: Settings = { on: false, limits: { bytesPerSecond: 1_250_000, bytesTotal: 10_000_000_000, onlyUnmetered: true } };

// What stands in `text`, as far as it can be read as settings; anything else is as if it had never been chosen.
export function read(text: string | null): Settings {
  let kept: unknown;
  try {
    kept = JSON.parse(text ?? '');
  } catch {
    return DEFAULTS;
  }
  if (typeof kept !== 'object' || kept === null) return DEFAULTS;
  const { on, limits } = kept as { on?: unknown; limits?: unknown };
  if (typeof limits !== 'object' || limits === null) return DEFAULTS;
  const said = limits as Record<string, unknown>;
  const count = (value: unknown) => typeof value === 'number' && Number.isSafeInteger(value) && value > 0;
  const read: Limits = {};
  if (count(said['bytesPerSecond'])) read.bytesPerSecond = said['bytesPerSecond'] as number;
  if (count(said['bytesTotal'])) read.bytesTotal = said['bytesTotal'] as number;
  if (said['onlyOnPower'] === true) read.onlyOnPower = true;
  if (said['onlyUnmetered'] === true) read.onlyUnmetered = true;
  const engines = said['searchEngines'];
  if (Array.isArray(engines)) {
    const chosen = engines.slice(0, MOST_ENGINES).filter(isChosen);
    if (chosen.length > 0) read.searchEngines = chosen.map(({ name, origins }) => ({ name, origins }));
  }
  return { on: on === true, limits: read };
}

function isChosen(engine: unknown): engine is ChosenEngine {
  const { name, origins } = (engine ?? {}) as Record<string, unknown>;
  return typeof name === 'string' && /^[a-z0-9-]{1,32}$/.test(name) && Array.isArray(origins) && origins.length > 0 &&
    origins.every((origin) => typeof origin === 'string');
}

// Whether an engine that was chosen is still asked where it was then.
export function isSame(chosen: ChosenEngine, now: ChosenEngine): boolean {
  const places = ({ origins }: ChosenEngine) => [...origins].sort().join(' ');
  return chosen.name === now.name && places(chosen) === places(now);
}

// A browser that keeps nothing still volunteers, with what is chosen each time.
export function load(): Settings {
  try {
    return read(localStorage.getItem(KEY));
  } catch {
    return DEFAULTS;
  }
}

export function keep(settings: Settings): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Said on the page where it matters: the key isn't kept either.
  }
}
