// The library for pages and other people's programs: a client of the overlay, and a volunteer, in a browser.
//
// It wraps the WebAssembly core. What of it is a page's own affair stands beside: storage, and what a volunteer's page
// must look after (tabs, power, sleep).
import { PageClient } from '../wasm/umbel.js';
import { failed } from './umbel/failure';
import { fetchBy } from './umbel/fetch';
import { Https, Trusted } from './umbel/https';
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

/** What {@link Umbel.fetch} takes: of what the browser's does, method, headers, body, redirect and signal; the rest is passed over. */
export interface FetchInit extends RequestInit {
  /** Bytes that the answer's body may have; 64 MiB if left out. */
  maxBytes?: number;
  /** Milliseconds for a site to begin to answer, and for each piece of its answer's body; 60,000 if left out. */
  patience?: number;
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
  /**
   * As `fetch` of the browser, through a circuit of three relays, with TLS that ends in this page: the exit resolves the host's name
   * and sees that, how much passes and when, and nothing else. `https:` alone; redirects are followed to such alone. No cookies, no
   * cache, no `Referer`, and fields that are the same for everyone; what one host is asked never shares a circuit with another.
   */
  fetch(input: string | URL, init?: FetchInit): Promise<Response>;
  /** Closes everything at once. */
  close(): void;
}

export interface ConnectOptions {
  /** The network, or the address of its description; `./umbel.json` beside the page if left out. */
  network?: Network | string;
  onprogress?: (step: Progress) => void;
  /** Certificates that {@link Umbel.fetch} trusts beside those that browsers do, in PEM or DER: for services of your own. */
  trust?: (string | Uint8Array)[];
  /**
   * Loads what {@link Umbel.fetch} needs with the rest, as `trust` does. It comes from where this library is from and not through the overlay:
   * whoever serves that would otherwise see when a visitor's first fetch happens. True for pages that will fetch.
   */
  fetch?: boolean;
}

/** Starts a client in this page; it is there when the first circuit stands. */
export async function connect(options: ConnectOptions = {}): Promise<Umbel> {
  requireWebRtc();
  const tell = (step: string) => options.onprogress?.(step as Progress);
  const trusted = new Trusted(options.trust ?? []);
  const [network, storage] = await Promise.all([
    findNetwork(options.network), openStorage(), load(), (options.fetch || options.trust) && trusted.load(),
  ]);
  tell('module');
  const client = (await failed(
    PageClient.connect(network.directories, network.authorities, storage, tell),
  )) as PageClient;
  // The relays learn at once, instead of by our silence.
  const leave = () => client.close();
  globalThis.addEventListener?.('pagehide', leave);
  return new Client(client, trusted, () => globalThis.removeEventListener?.('pagehide', leave));
}

class Client implements Umbel {
  readonly #client: PageClient;
  readonly #https: Https;
  readonly #closed: () => void;

  constructor(client: PageClient, trusted: Trusted, closed: () => void) {
    this.#client = client;
    this.#https = new Https(trusted, (host, port, wake) => client.open(host, port, wake));
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

  fetch(input: string | URL, init: FetchInit = {}): Promise<Response> {
    return fetchBy(this.#https, input, init);
  }

  close(): void {
    this.#closed();
    this.#client.close();
  }
}
