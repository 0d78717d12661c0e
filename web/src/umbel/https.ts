// HTTPS that ends in the page: a stream through the overlay, and the second WebAssembly module, which has TLS and HTTP in it.
//
// The module is loaded when it is first needed, or when the client starts. It does no I/O: what the stream brings is handed to it, and what it has to say to
// the stream. So the exit, at the stream's end, carries what it can't read.
import type { PageStream } from '../../wasm/umbel.js';
import type { HttpsExchange, HttpsHead, HttpsTrust } from '../../wasm/umbel_https.js';
import { asError, UmbelError } from './failure';

/** Bytes a second that a body goes out with at the least: an answer may take as much longer. */
const LEAST_RATE = 16 * 1024;
/** The longest time that timers know, in ms. */
const LONGEST = 0x7fff_ffff;

/** How long to wait. */
export interface Limits {
  /** In ms, for the head of an answer and for each piece of its body. */
  patience: number;
  /** When the last of several requests must have its head, by `performance.now()`. */
  until: number;
  signal: AbortSignal | undefined;
}

/** A request, its address as `URL` writes it. */
export interface Asked {
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

/** Exchanges by https over streams that `open` opens. */
export class Https {
  readonly #open: (host: string, port: number, wake: () => void) => PageStream;
  readonly #trusted: Trusted;

  constructor(trusted: Trusted, open: (host: string, port: number, wake: () => void) => PageStream) {
    this.#trusted = trusted;
    this.#open = open;
  }

  /** Sends a request; gives the head of its response, and whoever gives the rest. */
  async send(asked: Asked, limits: Limits): Promise<{ head: HttpsHead; talk: Talk }> {
    const { patience, signal } = limits;
    // One for all that goes before the head: nothing that comes makes it later.
    const until = Math.min(limits.until, performance.now() + patience + (asked.body.length / LEAST_RATE) * 1000);
    const { trust } = await unless(this.#trusted.load(), signal, until);
    const exchange = made(() => trust.exchange(asked.method, asked.url, asked.headers.flat(), asked.body));
    // Whether it opens shows when it is used.
    const talk = new Talk(exchange, (wake) => this.#open(exchange.host, exchange.port, wake), patience, signal);
    // The head comes first.
    return { head: (await talk.next(until)) as HttpsHead, talk };
  }
}

/** Whose certificates count: those that browsers trust, and further anchors. */
export class Trusted {
  readonly #anchors: (string | Uint8Array)[];
  #trust: HttpsTrust | undefined;

  constructor(anchors: (string | Uint8Array)[]) {
    this.#anchors = anchors;
  }

  async load(): Promise<{ trust: HttpsTrust }> {
    const module = await load();
    const bytes = () => this.#anchors.map((anchor) => (typeof anchor === 'string' ? new TextEncoder().encode(anchor) : anchor));
    this.#trust ??= made(() => new module.HttpsTrust(bytes()));
    return { trust: this.#trust };
  }
}

/**
 * One exchange over its stream, until its response is whole, something fails, or nobody wants it any more: what wakes it doesn't hold
 * it, so that one whose response is forgotten goes with that, and its stream.
 */
export class Talk {
  readonly #exchange: HttpsExchange;
  readonly #stream: PageStream;
  readonly #patience: number;
  readonly #signal: AbortSignal | undefined;
  /** What there was no room for yet. */
  #unsent: Uint8Array | undefined;
  /** The stream brings no more. */
  #ended = false;
  #closed = false;
  readonly #aborted: () => void;
  /** Goes on with what waits. */
  wake = () => {};

  constructor(exchange: HttpsExchange, open: (wake: () => void) => PageStream, patience: number, signal: AbortSignal | undefined) {
    const self = new WeakRef<Talk>(this);
    this.#exchange = exchange;
    this.#stream = opened(exchange, open, self);
    this.#patience = patience;
    this.#signal = signal;
    this.#aborted = closing(self);
    signal?.addEventListener('abort', this.#aborted);
  }

  /** What comes next: the head, then pieces of the body, then `null`. Ends itself with the last, or an error. */
  async next(until = performance.now() + this.#patience): Promise<HttpsHead | Uint8Array<ArrayBuffer> | null> {
    try {
      for (;;) {
        this.#signal?.throwIfAborted();
        if (this.#closed) throw new UmbelError('closed', 'This answer has been cancelled.');
        const event = made(() => this.#exchange.event()) as HttpsHead | Uint8Array<ArrayBuffer> | null | undefined;
        if (event === null) this.close();
        if (event !== undefined) return event;
        if (performance.now() >= until) throw late();
        if (!made(() => this.#pass())) await unless(new Promise<void>((resolve) => (this.wake = resolve)), this.#signal, until);
      }
    } catch (error) {
      this.close();
      // The stream may have been closed for it before it showed here.
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
      // It broke within, and can't be freed.
    }
    this.wake();
  };

  /** Passes on what there is, both ways; whether there was anything. */
  #pass(): boolean {
    this.#unsent ??= this.#exchange.outgoing();
    const sent = this.#unsent ? this.#stream.write(this.#unsent) : 0;
    if (this.#unsent?.length === sent) this.#unsent = undefined;
    else this.#unsent = this.#unsent?.subarray(sent);
    const came = this.#ended ? undefined : this.#stream.read();
    if (came) this.#exchange.received(came);
    this.#ended ||= came?.length === 0;
    return sent > 0 || came !== undefined;
  }
}

// Outside of Talk, where they share no variables with what holds it.
const waking = (talk: WeakRef<Talk>) => () => talk.deref()?.wake();
const closing = (talk: WeakRef<Talk>) => () => talk.deref()?.close();

function opened(exchange: HttpsExchange, open: (wake: () => void) => PageStream, talk: WeakRef<Talk>): PageStream {
  try {
    return open(waking(talk));
  } catch (error) {
    exchange.free();
    throw asError(error);
  }
}

const late = () => new UmbelError('target', 'The site sent nothing in time.');

/** What `make` makes; what the module throws is made an {@link UmbelError}. */
function made<T>(make: () => T): T {
  try {
    return make();
  } catch (error) {
    throw asError(error);
  }
}

/** What `promise` gives, unless that takes longer than `until` or the caller gives up. */
export function unless<T>(promise: Promise<T>, signal: AbortSignal | undefined, until = Infinity): Promise<T> {
  return new Promise((resolve, reject) => {
    const left = until - performance.now();
    const timer = left < LONGEST ? setTimeout(() => reject(late()), left) : undefined;
    const aborted = () => reject(signal?.reason);
    if (signal?.aborted) aborted();
    signal?.addEventListener('abort', aborted);
    promise.then(resolve, reject).finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', aborted);
    });
  });
}
