// The library for pages and other people's programs: a client of the overlay, and a volunteer, in a browser.
//
// It wraps the WebAssembly core. What of it is a page's own affair stands beside: storage, and what a volunteer's page
// must look after (tabs, power, sleep).
import { PageClient } from '../wasm/umbel.js';
import { failed } from './umbel/failure';
import { load, requireWebRtc } from './umbel/module';
import { findNetwork } from './umbel/network';
import { openStorage } from './umbel/storage';

export type { SearchEngine, SearchEngineState } from './umbel/engines';
export { UmbelError, type UmbelErrorKind } from './umbel/failure';
export type { Network } from './umbel/network';
export { volunteer, type Volunteer, type VolunteerLimits, type VolunteerState } from './umbel/volunteer';

import type { Network } from './umbel/network';

/** One relay of the way, with what building the circuit to it took. */
export interface Hop {
  relay: string;
  ms: number;
  /** It has no public address: another person's browser, or a computer behind a router. */
  volunteer: boolean;
}

export interface SearchResult {
  title: string;
  /** http or https, cleaned. An exit or engine may have made the page behind it for this query alone: open it through the overlay. */
  link: string;
  snippet: string;
}

export interface SearchAnswer {
  engine: string;
  results: SearchResult[];
  /** There is a further page. */
  more: boolean;
  /** The guard first, the exit last. */
  path: Hop[];
  /** From the query's leaving to its answer. */
  elapsedMs: number;
  /** The exit carries other things of this client too, for no other offers the engine. */
  sharedExit: boolean;
}

export interface PageResponse {
  status: number;
  headers: [string, string][];
  body: Uint8Array;
  path: Hop[];
}

/** The steps of the start, in order. */
export type Progress = 'module' | 'consensus' | 'channel' | 'circuit' | 'ready';

export interface Umbel {
  /** Asks a search engine by way of an exit, which sees the query and not who asks. */
  search(query: { terms: string; engine?: string; page?: number; language?: string }): Promise<SearchAnswer>;
  /** The engines that exits offer, the one asked by default first. */
  engines(): { name: string; exits: number }[];
  /** Has an exit perform a request. The exit sees it and its answer whole, so send nothing that tells who you are. */
  request(request: {
    url: string;
    method?: string;
    headers?: [string, string][];
    body?: Uint8Array;
  }): Promise<PageResponse>;
  /** As `fetch` of the browser, over {@link Umbel.request}: no cookies, no cache, redirects followed. */
  fetch(input: string, init?: RequestInit): Promise<Response>;
  /** Closes everything at once. */
  close(): void;
}

export interface ConnectOptions {
  /** The network, or the address of its description; `./umbel.json` beside the page if left out. */
  network?: Network | string;
  onprogress?: (step: Progress) => void;
}

/** Redirects that {@link Umbel.fetch} follows, as many as browsers do. */
const MOST_REDIRECTS = 20;
/** Statuses whose responses have no body. */
const WITHOUT_BODY = [101, 204, 205, 304];

/** Starts a client in this page; it is there when the first circuit stands. */
export async function connect(options: ConnectOptions = {}): Promise<Umbel> {
  requireWebRtc();
  const tell = (step: string) => options.onprogress?.(step as Progress);
  const [network, storage] = await Promise.all([findNetwork(options.network), openStorage(), load()]);
  tell('module');
  const client = (await failed(
    PageClient.connect(network.directories, network.authorities, storage, tell),
  )) as PageClient;
  // The relays learn at once, instead of by our silence.
  const leave = () => client.close();
  globalThis.addEventListener?.('pagehide', leave);
  return new Client(client, () => globalThis.removeEventListener?.('pagehide', leave));
}

class Client implements Umbel {
  readonly #client: PageClient;
  readonly #closed: () => void;

  constructor(client: PageClient, closed: () => void) {
    this.#client = client;
    this.#closed = closed;
  }

  async search(query: { terms: string; engine?: string; page?: number; language?: string }): Promise<SearchAnswer> {
    const { terms, engine, page = 1, language } = query;
    return (await failed(this.#client.search(terms, engine, page, language))) as SearchAnswer;
  }

  engines(): { name: string; exits: number }[] {
    return this.#client.engines() as { name: string; exits: number }[];
  }

  async request(request: {
    url: string;
    method?: string;
    headers?: [string, string][];
    body?: Uint8Array;
  }): Promise<PageResponse> {
    const { url, method = 'GET', headers = [], body = new Uint8Array() } = request;
    // As the browser writes it: names in ASCII, everything else encoded.
    const { href } = URL.canParse(url) ? new URL(url) : { href: '' };
    return (await failed(this.#client.request(method, href, headers.flat(), body))) as PageResponse;
  }

  async fetch(input: string, init: RequestInit = {}): Promise<Response> {
    let { url, method, headers, body } = await taken(input, init);
    for (let redirects = 0; ; redirects++) {
      init.signal?.throwIfAborted();
      const answer = await this.request({ url, method, headers, body });
      const location = answer.headers.find(([name]) => name === 'location')?.[1];
      const redirected = [301, 302, 303, 307, 308].includes(answer.status) && location !== undefined;
      if (!redirected || init.redirect === 'manual') return response(answer, url, redirects > 0);
      if (init.redirect === 'error') throw new TypeError('redirected');
      if (redirects === MOST_REDIRECTS) throw new TypeError('too many redirects');
      const next = new URL(location, url);
      // As browsers do: what was posted is not posted again, and a secret stays with whom it was meant for.
      if (answer.status === 303 || (answer.status < 303 && method === 'POST')) {
        if (method !== 'HEAD') method = 'GET';
        body = new Uint8Array();
        headers = headers.filter(([name]) => !name.startsWith('content-'));
      }
      if (next.origin !== new URL(url).origin) headers = headers.filter(([name]) => name !== 'authorization');
      url = next.href;
    }
  }

  close(): void {
    this.#closed();
    this.#client.close();
  }
}

async function taken(input: string, init: RequestInit) {
  const { signal: _, ...rest } = init;
  const request = new Request(input, rest);
  return {
    url: request.url,
    method: request.method,
    headers: [...request.headers] as [string, string][],
    body: new Uint8Array(await request.arrayBuffer()),
  };
}

function response(answer: PageResponse, url: string, redirected: boolean): Response {
  const body = WITHOUT_BODY.includes(answer.status) ? null : (answer.body as Uint8Array<ArrayBuffer>);
  const made = new Response(body, { status: answer.status, headers: answer.headers });
  Object.defineProperties(made, { url: { value: url }, redirected: { value: redirected } });
  return made;
}
