// The volunteer's settings, stored in this browser: on or off, and the limits.
import type { VolunteerLimits } from '../umbel';

// A chosen engine: its name, and the origins of its queries at the time of the choice. The server of the network's description can
// change the meaning of a name, so the choice is not valid for an engine of the same name with other origins.
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
// Maximum number of engines, as in a network's description.
const MAX_ENGINES = 32;

// The default limits are low. The user can raise them.
export const DEFAULTS: Settings = { on: false, limits: { bytesPerSecond: 1_250_000, bytesTotal: 10_000_000_000, onlyUnmetered: true } };

// The settings in `text`. Invalid parts count as absent.
export function read(text: string | null): Settings {
  let stored: unknown;
  try {
    stored = JSON.parse(text ?? '');
  } catch {
    return DEFAULTS;
  }
  if (typeof stored !== 'object' || stored === null) return DEFAULTS;
  const { on, limits } = stored as { on?: unknown; limits?: unknown };
  if (typeof limits !== 'object' || limits === null) return DEFAULTS;
  const values = limits as Record<string, unknown>;
  const isCount = (value: unknown) => typeof value === 'number' && Number.isSafeInteger(value) && value > 0;
  const read: Limits = {};
  if (isCount(values['bytesPerSecond'])) read.bytesPerSecond = values['bytesPerSecond'] as number;
  if (isCount(values['bytesTotal'])) read.bytesTotal = values['bytesTotal'] as number;
  if (values['onlyOnPower'] === true) read.onlyOnPower = true;
  if (values['onlyUnmetered'] === true) read.onlyUnmetered = true;
  const engines = values['searchEngines'];
  if (Array.isArray(engines)) {
    const chosen = engines.slice(0, MAX_ENGINES).filter(isChosen);
    if (chosen.length > 0) read.searchEngines = chosen.map(({ name, origins }) => ({ name, origins }));
  }
  return { on: on === true, limits: read };
}

function isChosen(engine: unknown): engine is ChosenEngine {
  const { name, origins } = (engine ?? {}) as Record<string, unknown>;
  return typeof name === 'string' && /^[a-z0-9-]{1,32}$/.test(name) && Array.isArray(origins) && origins.length > 0 &&
    origins.every((origin) => typeof origin === 'string');
}

// Whether `now` has the name and the origins of the chosen engine.
export function isSame(chosen: ChosenEngine, now: ChosenEngine): boolean {
  const joinedOrigins = ({ origins }: ChosenEngine) => [...origins].sort().join(' ');
  return chosen.name === now.name && joinedOrigins(chosen) === joinedOrigins(now);
}

// Without storage, each visit starts with the defaults.
export function load(): Settings {
  try {
    return read(localStorage.getItem(KEY));
  } catch {
    return DEFAULTS;
  }
}

export function store(settings: Settings): void {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // The page reports missing storage when the relay is reachable, because the key isn't stored either.
  }
}
