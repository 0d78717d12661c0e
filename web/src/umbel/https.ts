// HTTPS with TLS in the page: a stream through the overlay, and the second WebAssembly module, which has TLS and HTTP.
//
// The module is loaded at its first use or at the client's start. It does no I/O: this file passes bytes between the module and the
// stream. So the exit forwards bytes that it can't read.
import type { PageStream } from '../../wasm/umbel.js';
import type { HttpsExchange, HttpsHead, HttpsTrust } from '../../wasm/umbel_https.js';
import { asError, UmbelError } from './failure';

/** Lowest expected sending rate of a request's body, in bytes per second. The time limit of the answer is extended accordingly. */
const MIN_RATE = 16 * 1024;
/** The longest delay of a timer, in ms. */
const MAX_DELAY = 0x7fff_ffff;

/** The time limits of a request, and its abort signal. */
export interface Limits {
  /** Time limit in ms, for the head of an answer and for each piece of its body. */
  timeout: number;
  /** Deadline for the head of the last answer after redirects, by `performance.now()`. */
  until: number;
  signal: AbortSignal | undefined;
}

/** A request, with the URL in the form that `URL` serialises. */
export interface PreparedRequest {
  url: string;
  method: string;
  headers: [string, string][];
  body: Uint8Array;
}

type Module = typeof import('../../wasm/umbel_https.js');

let loading: Promise<Module> | undefined;

async function load(): Promise<Module> {
  loading ??= import('../../wasm/umbel_https.js').then(async (module) => {
    await module.default();
    return module;
  });
  try {
    return await loading;
  } catch {
    loading = undefined;
    throw new UmbelError('network', 'This page’s module for https could not be loaded; nothing was sent.');
  }
}

/** HTTPS exchanges over the streams that `open` returns. */
export class Https {
  readonly #open: (host: string, port: number, wake: () => void) => PageStream;
  readonly #trusted: Trusted;

  constructor(trusted: Trusted, open: (host: string, port: number, wake: () => void) => PageStream) {
    this.#trusted = trusted;
    this.#open = open;
  }

  /** Sends a request; returns the head of the response, and the exchange with its body. */
  async send(request: PreparedRequest, limits: Limits): Promise<{ head: HttpsHead; transfer: Transfer }> {
    const { timeout, signal } = limits;
    // One deadline for all steps before the head, which received bytes don't extend.
    const until = Math.min(limits.until, performance.now() + timeout + (request.body.length / MIN_RATE) * 1000);
    const { trust } = await bounded(this.#trusted.load(), signal, until);
    const exchange = callModule(() => trust.exchange(request.method, request.url, request.headers.flat(), request.body));
    // A failure to open the stream is reported when it is used.
    const transfer = new Transfer(exchange, (wake) => this.#open(exchange.host, exchange.port, wake), timeout, signal);
    // The first event is the head.
    return { head: (await transfer.next(until)) as HttpsHead, transfer };
  }
}

/** The trusted authorities: those of browsers, and additional anchors. */
export class Trusted {
  readonly #anchors: (string | Uint8Array)[];
  #trust: HttpsTrust | undefined;

  constructor(anchors: (string | Uint8Array)[]) {
    this.#anchors = anchors;
  }

  async load(): Promise<{ trust: HttpsTrust }> {
    const module = await load();
    const bytes = () => this.#anchors.map((anchor) => (typeof anchor === 'string' ? new TextEncoder().encode(anchor) : anchor));
    this.#trust ??= callModule(() => new module.HttpsTrust(bytes()));
    return { trust: this.#trust };
  }
}

/**
 * One exchange over its stream, until the response is complete or the exchange fails. Callbacks hold only weak references to it, so an
 * exchange whose response is no longer referenced is garbage-collected, with its stream.
 */
export class Transfer {
  readonly #exchange: HttpsExchange;
  readonly #stream: PageStream;
  readonly #timeout: number;
  readonly #signal: AbortSignal | undefined;
  /** Bytes for which the stream had no room yet. */
  #unsent: Uint8Array | undefined;
  /** Whether the stream has ended. */
  #ended = false;
  #closed = false;
  readonly #aborted: () => void;
  /** Resumes a waiting call of `next`. */
  wake = () => {};

  constructor(exchange: HttpsExchange, open: (wake: () => void) => PageStream, timeout: number, signal: AbortSignal | undefined) {
    const self = new WeakRef<Transfer>(this);
    this.#exchange = exchange;
    this.#stream = opened(exchange, open, self);
    this.#timeout = timeout;
    this.#signal = signal;
    this.#aborted = closing(self);
    signal?.addEventListener('abort', this.#aborted);
  }

  /** The next event: the head, then pieces of the body, then `null`. Closes the exchange after the last one, or on an error. */
  async next(until = performance.now() + this.#timeout): Promise<HttpsHead | Uint8Array<ArrayBuffer> | null> {
    try {
      for (;;) {
        this.#signal?.throwIfAborted();
        if (this.#closed) throw new UmbelError('closed', 'This answer has been cancelled.');
        const event = callModule(() => this.#exchange.event()) as HttpsHead | Uint8Array<ArrayBuffer> | null | undefined;
        if (event === null) this.close();
        if (event !== undefined) return event;
        if (performance.now() >= until) throw timedOut();
        if (!callModule(() => this.#transfer())) await bounded(new Promise<void>((resolve) => (this.wake = resolve)), this.#signal, until);
      }
    } catch (error) {
      this.close();
      // If an abort has closed the stream, throws the reason of the abort instead.
      this.#signal?.throwIfAborted();
      throw error;
    }
  }

  readonly close = (): void => {
    if (this.#closed) return;
    this.#closed = true;
    this.#signal?.removeEventListener('abort', this.#aborted);
    this.#stream.free();
    try {
      this.#exchange.free();
    } catch {
      // The module has failed within the exchange, which can't be freed then.
    }
    this.wake();
  };

  /** Passes the available bytes both ways; returns whether there were any. */
  #transfer(): boolean {
    this.#unsent ??= this.#exchange.outgoing();
    const sent = this.#unsent ? this.#stream.write(this.#unsent) : 0;
    if (this.#unsent?.length === sent) this.#unsent = undefined;
    else this.#unsent = this.#unsent?.subarray(sent);
    const received = this.#ended ? undefined : this.#stream.read();
    if (received) this.#exchange.received(received);
    this.#ended ||= received?.length === 0;
    return sent > 0 || received !== undefined;
  }
}

// Outside of Talk, so that these closures hold no reference to it.
const waking = (transfer: WeakRef<Transfer>) => () => transfer.deref()?.wake();
const closing = (transfer: WeakRef<Transfer>) => () => transfer.deref()?.close();

function opened(exchange: HttpsExchange, open: (wake: () => void) => PageStream, transfer: WeakRef<Transfer>): PageStream {
  try {
    return open(waking(transfer));
  } catch (error) {
    exchange.free();
    throw asError(error);
  }
}

const timedOut = () => new UmbelError('target', 'The site sent nothing in time.');

/** The result of `call`. An exception of the module becomes an {@link UmbelError}. */
function callModule<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw asError(error);
  }
}

/** The result of `promise`. Rejects at the time `until`, or with the reason of `signal` when it aborts. */
export function bounded<T>(promise: Promise<T>, signal: AbortSignal | undefined, until = Infinity): Promise<T> {
  return new Promise((resolve, reject) => {
    const left = until - performance.now();
    const timer = left < MAX_DELAY ? setTimeout(() => reject(timedOut()), left) : undefined;
    const aborted = () => reject(signal?.reason);
    if (signal?.aborted) aborted();
    signal?.addEventListener('abort', aborted);
    promise.then(resolve, reject).finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', aborted);
    });
  });
}
