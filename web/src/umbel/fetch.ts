// The browser's `fetch`, as far as it goes by https through the overlay: redirects, limits, and the browser's own `Response`.
import type { FetchInit } from '../umbel';
import { UmbelError } from './failure';
import type { Asked, Https, Talk } from './https';

/** Redirects that are followed, as many as browsers do. */
const MOST_REDIRECTS = 20;
const MOST_BYTES = 64 * 1024 * 1024;
const MOST_SENT = 32 * 1024 * 1024;
/** Statuses whose responses have no body. */
const WITHOUT_BODY = [204, 205, 304];

export async function fetchBy(https: Https, input: string | URL, init: FetchInit): Promise<Response> {
  const signal = init.signal ?? undefined;
  signal?.throwIfAborted();
  let asked = await taken(input, init);
  for (let redirects = 0; ; redirects++) {
    const { head, talk } = await https.send(asked, signal);
    const headers = pairs(head.fields);
    const location = headers.find(([name]) => name === 'location')?.[1];
    const redirected = [301, 302, 303, 307, 308].includes(head.status) && location !== undefined;
    if (!redirected || init.redirect === 'manual') {
      return response(asked, head.status, headers, talk, redirects > 0, init.maxBytes ?? MOST_BYTES);
    }
    talk.close();
    if (init.redirect === 'error') throw new UmbelError('target', 'The site redirects, which was not to be followed.');
    if (redirects === MOST_REDIRECTS) throw new UmbelError('target', 'The site redirects without end.');
    asked = following(asked, head.status, location);
  }
}

async function taken(input: string | URL, init: FetchInit): Promise<Asked> {
  const { method, headers, body } = init;
  if (body instanceof FormData) {
    throw new UmbelError('bad-input', 'Each browser writes a form’s data in a way of its own: send text, bytes or URLSearchParams.');
  }
  let request;
  try {
    // A stream as body is taken whole before anything is sent.
    const given = { ...(method && { method }), ...(headers && { headers }), ...(body && { body, duplex: 'half' }) };
    request = new Request(input, given);
  } catch {
    throw new UmbelError('bad-input', 'This address, method, header or body can’t be asked with.');
  }
  // Never in the clear, where the exit and all behind it could read and change it.
  if (!request.url.startsWith('https:')) {
    throw new UmbelError('bad-input', 'fetch() goes to https addresses alone; request() has an exit ask others, which sees all of it.');
  }
  const bytes = new Uint8Array(await request.arrayBuffer());
  if (bytes.length > MOST_SENT) throw new UmbelError('bad-input', 'The body is larger than a page sends.');
  return { url: request.url, method: request.method, headers: [...request.headers] as [string, string][], body: bytes };
}

/** The request that follows a redirect. */
function following(asked: Asked, status: number, location: string): Asked {
  let next;
  try {
    next = new URL(location, asked.url);
  } catch {
    throw new UmbelError('target', 'The site redirects to what is no address.');
  }
  if (next.protocol !== 'https:') {
    throw new UmbelError('refused', 'The site redirects to an address without https, which is not followed.');
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
  const made = new Answer(without ? null : body.stream, { status, headers }, body);
  Object.defineProperties(made, { url: { value: url.replace(/#.*$/u, '') }, redirected: { value: redirected } });
  return made;
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
    this.stream = new ReadableStream({ pull, cancel: talk.close }, { highWaterMark: 0 });
  }
}

/** A response that says why its body broke off; browsers say no more than that it did. */
class Answer extends Response {
  readonly #body: Body;

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>> | null, init: ResponseInit, body: Body) {
    super(stream, init);
    this.#body = body;
  }

  override arrayBuffer = () => this.#whole(super.arrayBuffer());
  override blob = () => this.#whole(super.blob());
  override formData = () => this.#whole(super.formData());
  override json = () => this.#whole(super.json());
  override text = () => this.#whole(super.text());

  async #whole<T>(promise: Promise<T>): Promise<T> {
    try {
      return await promise;
    } catch (error) {
      throw this.#body.failure ?? error;
    }
  }
}

const tooLarge = () => new UmbelError('target', 'The answer is larger than it may be.');

function pairs(flat: string[]): [string, string][] {
  return flat.flatMap((name, at) => (at % 2 === 0 ? [[name, flat[at + 1] ?? '']] : [])) as [string, string][];
}
