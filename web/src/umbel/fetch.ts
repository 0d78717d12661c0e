// The browser's `fetch`, as far as it goes by https through the overlay: redirects, limits, and the browser's own `Response`.
import type { FetchInit } from '../umbel';
import { UmbelError } from './failure';
import { type Asked, type Https, type Talk, unless } from './https';

/** Redirects that are followed, as many as browsers do. */
const MOST_REDIRECTS = 20;
const MOST_BYTES = 64 * 1024 * 1024;
const MOST_SENT = 32 * 1024 * 1024;
const PATIENCE = 60_000;
/** What all requests of one fetch may take together, as often the patience for one. */
const ALL = 5;
/** Bytes of a body that are fetched ahead of whoever reads, so that a small one nobody reads ends too. */
const AHEAD = 64 * 1024;
/** Statuses whose responses have no body. */
const WITHOUT_BODY = [204, 205, 304];

export async function fetchBy(https: Https, input: string | URL, init: FetchInit): Promise<Response> {
  const { maxBytes = MOST_BYTES, patience = PATIENCE } = init;
  // What is no number is no limit either.
  if (!(maxBytes >= 0) || !(patience > 0)) throw new UmbelError('bad-input', 'A limit must be a number, zero or greater.');
  const signal = init.signal ?? undefined;
  signal?.throwIfAborted();
  let asked = await taken(input, init, signal);
  const limits = { patience, until: Infinity, signal };
  for (let redirects = 0; ; redirects++) {
    const { head, talk } = await https.send(asked, limits).catch((error: unknown) => {
      // The site named it, not the caller.
      if (redirects > 0 && error instanceof UmbelError && error.kind === 'bad-input') throw nowhere();
      throw error;
    });
    // The first may have had a large body.
    if (redirects === 0) limits.until = performance.now() + ALL * patience;
    const headers = pairs(head.fields);
    const location = headers.find(([name]) => name === 'location')?.[1];
    const redirected = [301, 302, 303, 307, 308].includes(head.status) && location !== undefined;
    if (!redirected || init.redirect === 'manual') {
      return response(asked, head.status, headers, talk, redirects > 0, maxBytes);
    }
    talk.close();
    if (init.redirect === 'error') throw new UmbelError('target', 'The site redirects, and the request disallows redirects.');
    if (redirects === MOST_REDIRECTS) throw new UmbelError('target', 'The site redirects too often.');
    asked = following(asked, head.status, location);
  }
}

async function taken(input: string | URL, init: FetchInit, signal: AbortSignal | undefined): Promise<Asked> {
  const { method, headers, body } = init;
  if (body instanceof FormData) {
    throw new UmbelError('bad-input', 'FormData is not supported as a body, because its encoding identifies the browser: send text, bytes or URLSearchParams.');
  }
  if (body instanceof Blob && body.size > MOST_SENT) throw tooMuch();
  let request;
  let reader;
  try {
    // Not every browser's Request takes a stream: some make text of it.
    const stream = typeof body === 'object' && body !== null && 'getReader' in body ? body : undefined;
    const given = stream ? new Uint8Array() : body;
    request = new Request(input, { ...(method && { method }), ...(headers && { headers }), ...(given && { body: given }) });
    reader = stream?.getReader();
  } catch {
    throw new UmbelError('bad-input', 'The URL, method, a header or the body is not allowed.');
  }
  // Never in the clear, where the exit and all behind it could read and change it.
  if (!request.url.startsWith('https:')) {
    throw new UmbelError('bad-input', 'fetch() supports https URLs only; for others use request(), which an exit performs and reads.');
  }
  // A stream too is taken whole before anything is sent.
  const bytes = reader ? await whole(reader, signal) : new Uint8Array(await unless(request.arrayBuffer(), signal));
  if (bytes.length > MOST_SENT) throw tooMuch();
  return { url: request.url, method: request.method, headers: [...request.headers] as [string, string][], body: bytes };
}

/** All of a stream of bytes, unless that is too much. */
async function whole(reader: ReadableStreamDefaultReader<unknown>, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await unless(reader.read(), signal);
      if (done) return new Uint8Array(await new Blob(pieces).arrayBuffer());
      if (!(value instanceof Uint8Array)) throw new UmbelError('bad-input', 'A stream as a body must consist of Uint8Array chunks.');
      length += value.length;
      if (length > MOST_SENT) throw tooMuch();
      // Its giver may use the memory again.
      pieces.push(value.slice());
    }
  } catch (error) {
    reader.cancel(error).catch(() => {});
    throw error;
  }
}

/** The request that follows a redirect. */
function following(asked: Asked, status: number, location: string): Asked {
  let next;
  try {
    next = new URL(location, asked.url);
  } catch {
    throw nowhere();
  }
  if (next.protocol !== 'https:') {
    throw new UmbelError('refused', 'The site redirects to a URL without https, which is not followed.');
  }
  let { method, headers, body } = asked;
  // As browsers do: what was posted is not posted again, and a secret stays with whom it was meant for.
  if (status === 303 ? method !== 'HEAD' : status < 303 && method === 'POST') {
    method = 'GET';
    body = new Uint8Array();
    headers = headers.filter(([name]) => !name.startsWith('content-'));
  }
  if (next.origin !== new URL(asked.url).origin) headers = headers.filter(([name]) => name !== 'authorization');
  return { url: next.href, method, headers, body };
}

function response(
  { url, method }: Asked, status: number, headers: [string, string][], talk: Talk, redirected: boolean, most: number,
): Response {
  const without = method === 'HEAD' || WITHOUT_BODY.includes(status);
  if (without) talk.close();
  const told = Number(headers.find(([name]) => name === 'content-length')?.[1] ?? 0);
  if (!without && told > most) {
    talk.close();
    throw tooLarge();
  }
  const body = new Body(talk, most);
  return new Answer(without ? null : body.stream, { status, headers }, body, url.replace(/#.*$/u, ''), redirected);
}

/** A body as it is asked for; what breaks off, or is too large, is an error and never an end. */
class Body {
  readonly stream: ReadableStream<Uint8Array<ArrayBuffer>>;
  failure: unknown;

  constructor(talk: Talk, most: number) {
    let came = 0;
    const next = async () => {
      // After the head there are only pieces.
      const piece = (await talk.next()) as Uint8Array<ArrayBuffer> | null;
      came += piece?.length ?? 0;
      if (came > most) {
        talk.close();
        throw tooLarge();
      }
      return piece;
    };
    const pull = async (controller: ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>) => {
      try {
        const piece = await next();
        if (piece) controller.enqueue(piece);
        else controller.close();
      } catch (error) {
        this.failure = error;
        throw error;
      }
    };
    this.stream = new ReadableStream({ pull, cancel: talk.close }, new ByteLengthQueuingStrategy({ highWaterMark: AHEAD }));
  }
}

/** A response that says why its body broke off; browsers say no more than that it did. */
class Answer extends Response {
  readonly #body: Body;

  constructor(stream: BodyInit | null, init: ResponseInit, body: Body, url: string, redirected: boolean) {
    super(stream, init);
    this.#body = body;
    Object.defineProperties(this, { url: { value: url }, redirected: { value: redirected } });
  }

  override arrayBuffer = () => this.#whole(super.arrayBuffer());
  // Not every browser has it.
  override bytes = async () => new Uint8Array(await this.arrayBuffer());
  override blob = () => this.#whole(super.blob());
  override formData = () => this.#whole(super.formData());
  override json = () => this.#whole(super.json());
  override text = () => this.#whole(super.text());

  override clone(): Response {
    const { body, status, headers } = super.clone();
    return new Answer(body, { status, headers }, this.#body, this.url, this.redirected);
  }

  async #whole<T>(promise: Promise<T>): Promise<T> {
    try {
      return await promise;
    } catch (error) {
      throw this.#body.failure ?? error;
    }
  }
}

const tooMuch = () => new UmbelError('bad-input', 'The body exceeds the maximum size.');
const nowhere = () => new UmbelError('target', 'The site redirects to an invalid or unsupported URL.');
const tooLarge = () => new UmbelError('target', 'The answer exceeds the maximum size.');

function pairs(flat: string[]): [string, string][] {
  return flat.flatMap((name, at) => (at % 2 === 0 ? [[name, flat[at + 1] ?? '']] : [])) as [string, string][];
}
