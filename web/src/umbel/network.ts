// The description of a network: its directories, authorities and search engines.
import { readEngines, type SearchEngine } from './engines';
import { UmbelError } from './failure';

export interface Network {
  /** Base URLs, such as `https://directory.example`. */
  directories: string[];
  /** Keys of the authorities, in base 32; more than half must have signed a document. */
  authorities: string[];
  /** Search engines that volunteers' pages may query for others. */
  engines?: SearchEngine[];
}

const LOAD_TIMEOUT = 15_000;
const MAX_LENGTH = 256 * 1024;

export async function findNetwork(network: Network | string = './umbel.json'): Promise<Network> {
  if (typeof network !== 'string') return check(network);
  let text;
  try {
    const url = new URL(network, globalThis.document?.baseURI ?? globalThis.location.href);
    const answer = await fetch(url, {
      credentials: 'omit',
      referrerPolicy: 'no-referrer',
      signal: AbortSignal.timeout(LOAD_TIMEOUT),
    });
    if (!answer.ok) throw new Error(String(answer.status));
    text = await answer.text();
  } catch {
    throw new UmbelError('network', "The network's description (umbel.json) could not be loaded.");
  }
  if (text.length > MAX_LENGTH) throw invalid();
  try {
    return check(JSON.parse(text));
  } catch {
    throw invalid();
  }
}

const invalid = () => new UmbelError('bad-input', "The network's description is invalid.");

function check(network: unknown): Network {
  const { directories, authorities, engines } = (network ?? {}) as Partial<Network>;
  const isList = (list: unknown): list is string[] =>
    Array.isArray(list) && list.length > 0 && list.length <= 64 && list.every((text) => typeof text === 'string');
  if (!isList(directories) || !isList(authorities)) throw invalid();
  return { directories, authorities, engines: readEngines(engines) };
}
