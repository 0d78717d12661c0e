// Search engines that a volunteer asks for others: who names them, and what a page must allow so that they can be asked.
import { PageVolunteer } from '../../wasm/umbel.js';
import { asError, UmbelError } from './failure';

/** A search engine that lets any web page read its answers. */
export interface SearchEngine {
  /** What clients call it, the same at all exits: 1 to 32 of `a`–`z`, `0`–`9`, `-`. */
  name: string;
  /** What people call it. */
  title?: string;
  /** Its OpenSearch 1.1 description document (docs/engines.md), with answers as RSS, Atom or JSON. */
  description: string;
}

/** How an engine that was chosen stands. */
export interface SearchEngineState {
  name: string;
  /** It answers this page, so it is offered to clients. */
  offered: boolean;
  /** Why it isn't, in plain words; missing while it is being tried. */
  why?: string;
}

const MOST = 32;
const MOST_DESCRIPTION = 64 * 1024;
const NAME = /^[a-z0-9-]{1,32}$/;

/** Those of `engines`, which anyone may have written, that are any. */
export function readEngines(engines: unknown): SearchEngine[] {
  if (!Array.isArray(engines)) return [];
  const read = new Map<string, SearchEngine>();
  for (const engine of engines.slice(0, MOST)) {
    const { name, title, description } = (engine ?? {}) as Record<string, unknown>;
    if (typeof name !== 'string' || !NAME.test(name) || read.has(name)) continue;
    if (typeof description !== 'string' || description.length > MOST_DESCRIPTION) continue;
    read.set(name, typeof title === 'string' ? { name, title: title.slice(0, 60), description } : { name, description });
  }
  return [...read.values()];
}

/** What is chosen: engines of the network by their names, or others described. */
export function chooseEngines(chosen: readonly (string | SearchEngine)[], named: readonly SearchEngine[]): SearchEngine[] {
  return chosen.map((one) => {
    const engine = typeof one === 'string' ? named.find(({ name }) => name === one) : one;
    if (typeof engine?.name === 'string' && typeof engine.description === 'string') return engine;
    throw new UmbelError('bad-input', `The network’s description has no search engine “${String(typeof one === 'string' ? one : engine?.name)}”; pass its description.`);
  });
}

/** The origins at which `engine` is asked, which a page's `connect-src` must allow. The core must have been loaded. */
export function engineOrigins({ name, description }: SearchEngine): string[] {
  try {
    return PageVolunteer.engine_origins(name, description);
  } catch (error) {
    throw asError(error);
  }
}
