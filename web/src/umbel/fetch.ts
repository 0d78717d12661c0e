// `fetch` by https through the overlay: redirects, limits, and the browser's own `Response`.
import type { FetchInit } from '../umbel';
import { UmbelError } from './failure';
import { type PreparedRequest, type Https, type Transfer, bounded } from './https';

/** Largest number of redirects, as in browsers. */
const MAX_REDIRECTS = 20;
const MAX_BYTES = 64 * 1024 * 1024;
const MAX_SENT = 32 * 1024 * 1024;
const DEFAULT_TIMEOUT = 60_000;
/** Time limit of all redirects after the first answer, as a multiple of the time limit of one request. */
const REDIRECTS_FACTOR = 5;
/** Bytes of a body that are fetched before they are read, so that the stream of a small unread body ends too. */
const READ_AHEAD = 64 * 1024;
/** Statuses whose responses have no body. */
const WITHOUT_BODY = [204, 205, 304];

export async function fetchBy(https: Https, input: string | URL, init: FetchInit): Promise<Response> {
  const { maxBytes = MAX_BYTES, timeout = DEFAULT_TIMEOUT } = init;
  // `NaN` fails these comparisons, so values that are not numbers are rejected.
  if (!(maxBytes >= 0) || !(timeout > 0)) throw new UmbelError('bad-input', 'A limit must be a number, zero or greater.');
  const signal = init.signal ?? undefined;
  signal?.throwIfAborted();
  let request = await prepare(input, init, signal);
  const limits = { timeout, until: Infinity, signal };
  for (let redirects = 0; ; redirects++) {
    const { head, transfer } = await https.send(request, limits).catch((error: unknown) => {
      // The invalid URL is from the site, not from the caller.
      if (redirects > 0 && error instanceof UmbelError && error.kind === 'bad-input') throw invalidRedirect();
      throw error;
    });
    // The limit of redirects starts after the first answer, because the first request may have a large body.
    if (redirects === 0) limits.until = performance.now() + REDIRECTS_FACTOR * timeout;
    const headers = pairs(head.fields);
    const location = headers.find(([name]) => name === 'location')?.[1];
    const redirected = [301, 302, 303, 307, 308].includes(head.status) && location !== undefined;
    if (!redirected || init.redirect === 'manual') {
      return response(request, head.status, headers, transfer, redirects > 0, maxBytes);
    }
    transfer.close();
    if (init.redirect === 'error') throw new UmbelError('target', 'The site redirects, and the request disallows redirects.');
    if (redirects === MAX_REDIRECTS) throw new UmbelError('target', 'The site redirects too often.');
    request = followRedirect(request, head.status, location);
  }
}

async function prepare(input: string | URL, init: FetchInit, signal: AbortSignal | undefined): Promise<PreparedRequest> {
  const { method, headers, body } = init;
  if (body instanceof FormData) {
    throw new UmbelError('bad-input', 'FormData is not supported as a body, because its encoding identifies the browser: send text, bytes or URLSearchParams.');
  }
  if (body instanceof Blob && body.size > MAX_SENT) throw bodyTooLarge();
  let request;
  let reader;
  try {
    // In some browsers, Request converts a stream to text.
    const stream = typeof body === 'object' && body !== null && 'getReader' in body ? body : undefined;
    const given = stream ? new Uint8Array() : body;
    request = new Request(input, { ...(method && { method }), ...(headers && { headers }), ...(given && { body: given }) });
    reader = stream?.getReader();
  } catch {
    throw new UmbelError('bad-input', 'The URL, method, a header or the body is not allowed.');
  }
  // Without https, the exit and all networks behind it could read and modify the request.
  if (!request.url.startsWith('https:')) {
    throw new UmbelError('bad-input', 'fetch() supports https URLs only; for others use request(), which an exit performs and reads.');
  }
  // A stream is read completely before anything is sent.
  const bytes = reader ? await whole(reader, signal) : new Uint8Array(await bounded(request.arrayBuffer(), signal));
  if (bytes.length > MAX_SENT) throw bodyTooLarge();
  return { url: request.url, method: request.method, headers: [...request.headers] as [string, string][], body: bytes };
}

/** The content of a stream of bytes, up to the maximum size. */
async function whole(reader: ReadableStreamDefaultReader<unknown>, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await bounded(reader.read(), signal);
      if (done) return new Uint8Array(await new Blob(pieces).arrayBuffer());
      if (!(value instanceof Uint8Array)) throw new UmbelError('bad-input', 'A stream as a body must consist of Uint8Array chunks.');
      length += value.length;
      if (length > MAX_SENT) throw bodyTooLarge();
      // The source may reuse the memory.
      pieces.push(value.slice());
    }
  } catch (error) {
    reader.cancel(error).catch(() => {});
    throw error;
  }
}

/** The request that follows a redirect. */
function followRedirect(request: PreparedRequest, status: number, location: string): PreparedRequest {
  let next;
  try {
    next = new URL(location, request.url);
  } catch {
    throw invalidRedirect();
  }
  if (next.protocol !== 'https:') {
    throw new UmbelError('refused', 'The site redirects to a URL without https, which is not followed.');
  }
  let { method, headers, body } = request;
  // As in browsers: a redirected POST becomes a GET, and `authorization` is not sent to another origin.
  if (status === 303 ? method !== 'HEAD' : status < 303 && method === 'POST') {
    method = 'GET';
    body = new Uint8Array();
    headers = headers.filter(([name]) => !name.startsWith('content-'));
  }
  if (next.origin !== new URL(request.url).origin) headers = headers.filter(([name]) => name !== 'authorization');
  return { url: next.href, method, headers, body };
}

function response(
  { url, method }: PreparedRequest, status: number, headers: [string, string][], transfer: Transfer, redirected: boolean, maxBytes: number,
): Response {
  const bodiless = method === 'HEAD' || WITHOUT_BODY.includes(status);
  if (bodiless) transfer.close();
  const declared = Number(headers.find(([name]) => name === 'content-length')?.[1] ?? 0);
  if (!bodiless && declared > maxBytes) {
    transfer.close();
    throw answerTooLarge();
  }
  const body = new Body(transfer, maxBytes);
  return new Answer(bodiless ? null : body.stream, { status, headers }, body, url.replace(/#.*$/u, ''), redirected);
}

/** A body as a stream. Truncation and excessive size are errors, never a clean end. */
class Body {
  readonly stream: ReadableStream<Uint8Array<ArrayBuffer>>;
  failure: unknown;

  constructor(transfer: Transfer, maxBytes: number) {
    let received = 0;
    const next = async () => {
      // Only pieces follow the head.
      const piece = (await transfer.next()) as Uint8Array<ArrayBuffer> | null;
      received += piece?.length ?? 0;
      if (received > maxBytes) {
        transfer.close();
        throw answerTooLarge();
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
    this.stream = new ReadableStream({ pull, cancel: transfer.close }, new ByteLengthQueuingStrategy({ highWaterMark: READ_AHEAD }));
  }
}

/** A response that reports the reason for a truncated body, unlike the browser's own. */
class Answer extends Response {
  readonly #body: Body;

  constructor(stream: BodyInit | null, init: ResponseInit, body: Body, url: string, redirected: boolean) {
    super(stream, init);
    this.#body = body;
    Object.defineProperties(this, { url: { value: url }, redirected: { value: redirected } });
  }

  override arrayBuffer = () => this.#whole(super.arrayBuffer());
  // Some browsers lack this method.
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

const bodyTooLarge = () => new UmbelError('bad-input', 'The body exceeds the maximum size.');
const invalidRedirect = () => new UmbelError('target', 'The site redirects to an invalid or unsupported URL.');
const answerTooLarge = () => new UmbelError('target', 'The answer exceeds the maximum size.');

function pairs(flat: string[]): [string, string][] {
  return flat.flatMap((name, at) => (at % 2 === 0 ? [[name, flat[at + 1] ?? '']] : [])) as [string, string][];
}
