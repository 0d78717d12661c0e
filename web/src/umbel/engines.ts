// Search engines that a volunteer queries for others: their descriptions, and the origins that a page's policy must allow.
import { PageVolunteer } from '../../wasm/umbel.js';
import { asError, UmbelError } from './failure';

/** A search engine that lets any web page read its answers. */
export interface SearchEngine {
  /** The name for clients, the same at all exits: 1 to 32 of `a`–`z`, `0`–`9`, `-`. */
  name: string;
  /** The name for display. */
  title?: string;
  /** The OpenSearch 1.1 description document (docs/engines.md), with answers as RSS, Atom or JSON. */
  description: string;
}

/** The state of a chosen engine. */
export interface SearchEngineState {
  name: string;
  /** Whether the engine is offered to clients, because this page can read its answers. */
  offered: boolean;
  /** The reason if the engine is not offered, as text for the user; absent before the first test has ended. */
  why?: string;
}

const MAX_ENGINES = 32;
/** Maximum length of a description, in characters. */
const MAX_DESCRIPTION_LEN = 64 * 1024;
const NAME = /^[a-z0-9-]{1,32}$/;

/** The valid entries of `engines`, which is untrusted. */
export function readEngines(engines: unknown): SearchEngine[] {
  if (!Array.isArray(engines)) return [];
  const read = new Map<string, SearchEngine>();
  for (const engine of engines.slice(0, MAX_ENGINES)) {
    const { name, title, description } = (engine ?? {}) as Record<string, unknown>;
    if (typeof name !== 'string' || !NAME.test(name) || read.has(name)) continue;
    if (typeof description !== 'string' || description.length > MAX_DESCRIPTION_LEN) continue;
    read.set(name, typeof title === 'string' ? { name, title: title.slice(0, 60), description } : { name, description });
  }
  return [...read.values()];
}

/** The chosen engines: those of the network by their names, others by their descriptions. */
export function chooseEngines(chosen: readonly (string | SearchEngine)[], named: readonly SearchEngine[]): SearchEngine[] {
  return chosen.map((choice) => {
    const engine = typeof choice === 'string' ? named.find(({ name }) => name === choice) : choice;
    if (typeof engine?.name === 'string' && typeof engine.description === 'string') return engine;
    throw new UmbelError('bad-input', `The network’s description has no search engine “${String(typeof choice === 'string' ? choice : engine?.name)}”; pass its description.`);
  });
}

/** The origins of queries to `engine`, which a page's `connect-src` must allow. The core must be loaded. */
export function engineOrigins({ name, description }: SearchEngine): string[] {
  try {
    return PageVolunteer.engine_origins(name, description);
  } catch (error) {
    throw asError(error);
  }
}
