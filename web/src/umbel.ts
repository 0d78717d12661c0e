// The library for pages and other programs: a client of the overlay, and a volunteer, in a browser.
//
// The library wraps the WebAssembly core. The modules in `umbel/` have the parts that only pages need: storage, and for a volunteer
// tabs, power and sleep.
import { PageClient } from '../wasm/umbel.js';
import { fromCore } from './umbel/failure';
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

/** One relay of a path. */
export interface Hop {
  /** The identity of the relay, in base 32. */
  relay: string;
  /** Time to build the circuit to this relay, in milliseconds. */
  ms: number;
  /** Whether the relay has no public address: another person's browser, or a computer behind a router. */
  volunteer: boolean;
}

/** One result of a search engine, as plain text. */
export interface SearchResult {
  title: string;
  /** An http or https URL, cleaned. An exit or engine may have created the URL for this query alone, so open it through the overlay. */
  url: string;
  snippet: string;
}

/** The answer to a query. */
export interface SearchAnswer {
  engine: string;
  results: SearchResult[];
  /** Whether there is a next page. */
  more: boolean;
  /** The relays, the guard first and the exit last. */
  path: Hop[];
  /** Time from sending the query to its answer, in milliseconds. */
  elapsedMs: number;
  /** Whether the exit also carries other streams of this client, or did so recently, because no other exit was suitable. */
  sharedExit: boolean;
}

/** The response to a delegated request. */
export interface PageResponse {
  status: number;
  headers: [string, string][];
  body: Uint8Array;
  path: Hop[];
}

/** Options of {@link Umbel.fetch}: method, headers, body, redirect and signal, as for the browser's `fetch`. Others are ignored. */
export interface FetchInit extends RequestInit {
  /** Largest body of the answer, in bytes; 64 MiB by default. */
  maxBytes?: number;
  /** Time limit in milliseconds for the head of the answer, and for each piece of its body; 60,000 by default. */
  timeout?: number;
}

/** The steps of a client's start, in order. */
export type Progress = 'module' | 'consensus' | 'channel' | 'circuit' | 'ready';

/** A client of the overlay. */
export interface Umbel {
  /** Sends a query to a search engine through an exit. The exit reads the query, but doesn't see this browser's address. */
  search(query: { terms: string; engine?: string; page?: number; language?: string }): Promise<SearchAnswer>;
  /** The engines that exits offer, the default first. */
  engines(): { name: string; exits: number }[];
  /** Sends a request that an exit performs. The exit reads the whole request and answer, so send nothing that identifies the user. */
  request(request: {
    url: string;
    method?: string;
    headers?: [string, string][];
    body?: Uint8Array;
  }): Promise<PageResponse>;
  /**
   * The browser's `fetch` through a circuit, with TLS in this page. The exit resolves the host's name, and sees only the
   * host, the port, and the amounts and times of data. Only `https:` URLs, also for redirects. No cookies, no cache, no `Referer`, and
   * the same header fields for all users. Requests to different hosts never share a circuit.
   */
  fetch(input: string | URL, init?: FetchInit): Promise<Response>;
  /** Closes all streams and links immediately. */
  close(): void;
}

export interface ConnectOptions {
  /** The network, or the URL of its description; `./umbel.json` beside the page by default. */
  network?: Network | string;
  /** Receives each step of the start. */
  onprogress?: (step: Progress) => void;
  /** Certificates that {@link Umbel.fetch} trusts in addition to those of browsers, in PEM or DER, for your own services. */
  trust?: (string | Uint8Array)[];
  /**
   * Whether to load the module for {@link Umbel.fetch} at the start; `trust` implies this. The module comes from the server of this
   * library, not through the overlay, so without this option the server sees the time of a visitor's first fetch.
   */
  fetch?: boolean;
}

/** Starts a client in this page; resolves when the first circuit is built. */
export async function connect(options: ConnectOptions = {}): Promise<Umbel> {
  requireWebRtc();
  const report = (step: string) => options.onprogress?.(step as Progress);
  const trusted = new Trusted(options.trust ?? []);
  const [network, storage] = await Promise.all([
    findNetwork(options.network), openStorage(), load(), (options.fetch || options.trust) && trusted.load(),
  ]);
  report('module');
  const client = (await fromCore(
    PageClient.connect(network.directories, network.authorities, storage, report),
  )) as PageClient;
  // Notifies the relays immediately, so that they need not wait for a timeout.
  const leave = () => client.close();
  globalThis.addEventListener?.('pagehide', leave);
  return new Client(client, trusted, () => globalThis.removeEventListener?.('pagehide', leave));
}

class Client implements Umbel {
  readonly #client: PageClient;
  readonly #https: Https;
  readonly #onClose: () => void;

  constructor(client: PageClient, trusted: Trusted, onClose: () => void) {
    this.#client = client;
    this.#https = new Https(trusted, (host, port, wake) => client.open(host, port, wake));
    this.#onClose = onClose;
  }

  async search(query: { terms: string; engine?: string; page?: number; language?: string }): Promise<SearchAnswer> {
    const { terms, engine, page = 1, language } = query;
    return (await fromCore(this.#client.search(terms, engine, page, language))) as SearchAnswer;
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
    // The form that `URL` serialises: names in ASCII, other characters percent-encoded.
    const { href } = URL.canParse(url) ? new URL(url) : { href: '' };
    return (await fromCore(this.#client.request(method, href, headers.flat(), body))) as PageResponse;
  }

  fetch(input: string | URL, init: FetchInit = {}): Promise<Response> {
    return fetchBy(this.#https, input, init);
  }

  close(): void {
    this.#onClose();
    this.#client.close();
  }
}
