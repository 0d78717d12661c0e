// The library's `fetch` over an overlay to HTTPS servers, with TLS in the page.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createServer as createPlainServer } from 'node:http';
import { createServer } from 'node:https';
import { connect, createServer as createTcpServer } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { createServer as createTlsServer } from 'node:tls';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { authority } from './authority.js';
import { BROWSERS, launch } from './browsers.js';
import { testnet } from './testnet.js';

const deadline = { timeout: 60000 };
const NAMES = 'DNS:localhost,IP:127.0.0.1';
const BODY = Buffer.from(Array.from({ length: 5_000_000 }, (_, at) => (at * 7 + (at >> 8)) % 256));
const SECRET = 'path-that-only-the-site-may-see';

let overlay, trusted, untrusted, validCertificate, page;
const closers = [];
// Paths of the requests that sites have received.
const receivedPaths = [];

// Starts a server on loopback; returns its port.
async function listen(server) {
  const sockets = new Set();
  server.on('connection', (socket) => {
    socket.on('error', () => {});
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.on('tlsClientError', () => {});
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(() => {
    server.close();
    sockets.forEach((socket) => socket.destroy());
  });
  return server.address().port;
}

// A forwarder to `port` that records all bytes, which are the bytes that an exit sees.
async function recorder(port) {
  const seen = { forward: [], backward: [] };
  const at = await listen(createTcpServer((socket) => {
    const site = connect(port, '127.0.0.1');
    site.on('error', () => {});
    socket.on('data', (bytes) => seen.forward.push(bytes)).pipe(site);
    site.on('data', (bytes) => seen.backward.push(bytes)).pipe(socket);
  }));
  return { port: at, seen };
}

// A site that records requests and answers them by `answer`.
const site = (certificate, answer) =>
  listen(createServer(certificate, (request, response) => {
    receivedPaths.push(request.url);
    answer(request, response);
  }));

// The complete TLS records in `bytes`, each with its type and content.
function records(bytes) {
  const found = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    assert(bytes[at] >= 20 && bytes[at] <= 23 && bytes[at + 1] === 3, `no record at ${at}`);
    const end = at + 5 + bytes.readUInt16BE(at + 3);
    found.push([bytes[at], bytes.subarray(at + 5, end)]);
    at = end;
  }
  return found;
}

// A server that answers a request with `bytes` over TLS and then closes, with or without close_notify.
const rawSite = (bytes, closeNotify = true) =>
  listen(createTlsServer(validCertificate, (socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.write(bytes, () => (closeNotify ? socket.end() : socket._parent?.destroy() ?? socket.destroy())));
  }));

// Performs a fetch in the page; returns the response or the failure.
const fetched = (url, init = {}) =>
  page.evaluate(async (url, { cancelled, ...init }) => {
    const digest = async (bytes) =>
      [...new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    try {
      const signal = cancelled ? AbortSignal.timeout(cancelled) : undefined;
      const answer = await umbel.fetch(url, { ...init, ...(signal && { signal }) });
      const { status, url: at, redirected } = answer;
      const headers = [...answer.headers];
      const bytes = await answer.arrayBuffer();
      return { status, at, redirected, headers, length: bytes.byteLength, digest: await digest(bytes), text: new TextDecoder().decode(bytes.slice(0, 200)) };
    } catch (error) {
      return { failed: true, name: error.name, kind: error.kind, message: error.message };
    }
  }, url, init);

async function assertFails(url, kind, words, init) {
  const outcome = await fetched(url, init);
  assert.equal(outcome.kind, kind, JSON.stringify(outcome));
  assert.equal(outcome.name, 'UmbelError');
  assert.match(outcome.message, words);
}

before(async () => {
  overlay = await testnet({ address: nonLoopbackAddress() });
  [trusted, untrusted] = [authority('ours'), authority('theirs')];
  validCertificate = trusted.certificate(NAMES);
}, { timeout: 600000 });

after(async () => {
  closers.forEach((close) => close());
  [trusted, untrusted].forEach((authority) => authority?.remove());
  await overlay?.stop();
});

for (const browser of Object.keys(BROWSERS)) {
  describe(`fetch in ${browser}`, { skip: skipReason(browser, nonLoopbackAddress()) }, () => {
    let driver;
    // URLs of all the page's requests.
    const requested = [];

    before(async () => {
      receivedPaths.length = 0;
      driver = await launch(browser);
      const context = await driver.createBrowserContext();
      page = await context.newPage();
      page.on('request', (request) => request.url().startsWith('data:') || requested.push(request.url()));
      // A page with the strict content security policy of Umbel's pages. It starts no client by itself.
      await page.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
      await page.evaluate(async () => {
        const { connect } = await import('/umbel.js');
        globalThis.connect = connect;
        globalThis.umbel = await connect();
      });
    }, { timeout: 120000 });

    after(() => driver?.close());

    const isModule = (url) => /umbel_https.*\.wasm$/.test(url);

    test('the TLS module is loaded at the first fetch, and an authority of the test is trusted only if the page names it', deadline, async () => {
      assert.deepEqual(requested.filter(isModule), []);
      const port = await site(validCertificate, (_, response) => response.end('hello'));
      await assertFails(`https://127.0.0.1:${port}/`, 'certificate', /no authority that browsers trust/i);
      assert.equal(requested.filter(isModule).length, 1);
      assert.deepEqual(receivedPaths, []);
      const failed = await page.evaluate(() => connect({ trust: ['no certificate'] }).catch((error) => error.kind));
      assert.equal(failed, 'bad-input');
      await page.evaluate(async (pem) => {
        umbel.close();
        globalThis.umbel = await connect({ trust: [pem] });
      }, trusted.pem);
      assert.equal((await fetched(`https://127.0.0.1:${port}/`)).text, 'hello');
      assert.equal((await fetched(`https://localhost:${port}/`)).text, 'hello', 'a name, which the exit resolves');
    });

    test('the option fetch loads the TLS module at the start', deadline, async () => {
      const other = await page.browserContext().newPage();
      const loaded = [];
      other.on('request', (request) => loaded.push(request.url()));
      await other.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
      const connected = (options) => other.evaluate(async (options) => (await (await import('/umbel.js')).connect(options)).close(), options);
      await connected({});
      assert.deepEqual(loaded.filter(isModule), []);
      await connected({ fetch: true });
      assert.equal(loaded.filter(isModule).length, 1);
      await other.close();
    });

    test('megabytes arrive unchanged, and the exit sees only TLS', deadline, async (t) => {
      const { port, seen } = await recorder(await site(validCertificate, (_, response) => response.end(BODY)));
      const url = `https://localhost:${port}/${SECRET}`;
      const timed = async () => {
        const started = performance.now();
        const outcome = await fetched(url);
        return { outcome, took: performance.now() - started };
      };
      const { outcome, took: first } = await timed();
      assert.equal(outcome.status, 200, JSON.stringify(outcome));
      assert.equal(outcome.length, BODY.length);
      assert.equal(outcome.digest, createHash('sha256').update(BODY).digest('hex'));
      assert.deepEqual([outcome.at, outcome.redirected], [url, false]);
      const [forward, backward] = [Buffer.concat(seen.forward), Buffer.concat(seen.backward)];
      for (const bytes of [forward, backward]) {
        // `records` asserts that all bytes belong to TLS records.
        assert(records(bytes).length > 0);
        assert.equal(bytes.includes(SECRET), false);
        assert.equal(bytes.includes(BODY.subarray(1000, 1064)), false);
      }
      assert(forward.includes('localhost'), 'the first message of TLS has the host’s name as plain text');
      const { took } = await timed();
      t.diagnostic(`5 MB: ${Math.round(first)} ms, once more: ${Math.round(took)} ms, ${(BODY.length / 1048.576 / took).toFixed(1)} MiB/s`);
    });

    test('a body waits for a slow reader, and arrives complete', deadline, async () => {
      const body = Buffer.concat(Array(6).fill(BODY));
      const { port, seen } = await recorder(await site(validCertificate, (_, response) => response.end(body)));
      await page.evaluate(async (url) => {
        const reader = (await umbel.fetch(url)).body.getReader();
        globalThis.rest = { reader, pieces: [] };
        globalThis.readTo = async (end) => {
          for (let had = 0; had < end; ) {
            const { done, value } = await reader.read();
            if (done) return;
            rest.pieces.push(value);
            had += value.length;
          }
        };
        // At full speed, so that many bytes are in flight.
        await readTo(10_000_000);
      }, `https://localhost:${port}/`);
      // The transfer stops when the bytes in flight have reached their cap.
      const carried = () => seen.backward.reduce((sum, bytes) => sum + bytes.length, 0);
      const end = performance.now() + 30000;
      for (let last = -1; carried() !== last; ) {
        assert(performance.now() < end, 'the transfer stops while the reader is idle');
        last = carried();
        // The condition is half a second without a byte, for which there is no event.
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
      const digest = await page.evaluate(async () => {
        await readTo(Infinity);
        const hash = await crypto.subtle.digest('SHA-256', await new Blob(rest.pieces).arrayBuffer());
        return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
      });
      assert.equal(digest, createHash('sha256').update(body).digest('hex'));
    });

    test('a request has the same header fields in every browser, and its body arrives', deadline, async () => {
      let received;
      const port = await site(validCertificate, async (request, response) => {
        const hash = createHash('sha256');
        for await (const piece of request) hash.update(piece);
        received = { method: request.method, headers: request.rawHeaders, digest: hash.digest('hex') };
        response.setHeader('set-cookie', 'id=1');
        response.end('taken');
      });
      const text = 'posted '.repeat(200_000);
      const outcome = await fetched(`https://127.0.0.1:${port}/form`, {
        method: 'POST', body: text, headers: { 'x-key': '1', 'content-type': 'text/plain', authorization: 'Bearer x' }, credentials: 'include',
      });
      assert.equal(outcome.text, 'taken');
      assert.deepEqual(received, {
        method: 'POST',
        digest: createHash('sha256').update(text).digest('hex'),
        headers: [
          'host', `127.0.0.1:${port}`, 'authorization', 'Bearer x', 'content-type', 'text/plain', 'x-key', '1', 'user-agent', 'Mozilla/5.0 (compatible; Umbel)',
          'accept-encoding', 'identity', 'accept', '*/*', 'accept-language', 'en', 'content-length', String(text.length),
        ],
      });
      const form = await page.evaluate(async (url) => {
        const body = new FormData();
        body.set('a', 'b');
        return umbel.fetch(url, { method: 'POST', body }).catch((error) => error.kind);
      }, `https://127.0.0.1:${port}/form`);
      assert.equal(form, 'bad-input', 'the boundary of a form would identify the browser');
    });

    test('a stream is sent as the body, within the size limit and until an abort', deadline, async () => {
      const received = [];
      const port = await site(validCertificate, async (request, response) => {
        const pieces = [];
        for await (const piece of request) pieces.push(piece);
        received.push([request.method, request.headers['content-type'], Buffer.concat(pieces).toString()]);
        response.end('taken');
      });
      const outcomes = await page.evaluate(async (url) => {
        const request = (method, source, init) =>
          umbel.fetch(url, { method, body: new ReadableStream(source), ...init })
            .then((answer) => answer.text(), (error) => error.kind ?? error.name);
        const bytes = (controller) => {
          for (const text of ['one ', 'two']) controller.enqueue(new TextEncoder().encode(text));
          controller.close();
        };
        const controller = new AbortController();
        // Aborts the fetch when the body is pulled, and never enqueues data.
        const pull = () => (controller.abort(), new Promise(() => {}));
        let cancelled = 0;
        const endless = { pull: (controller) => controller.enqueue(new Uint8Array(1 << 20)), cancel: () => (cancelled += 1) };
        return [
          await request('PUT', { start: bytes }),
          await request('PUT', endless), cancelled,
          await request('PUT', { start: (controller) => controller.enqueue('text') }),
          await request('GET', { start: bytes }),
          await request('PUT', { pull }, { signal: controller.signal }),
          await umbel.fetch(url, { method: 'PUT', body: new Blob(Array(33).fill(new Uint8Array(1 << 20))) }).catch((error) => error.kind),
        ];
      }, `https://127.0.0.1:${port}/`);
      assert.deepEqual(outcomes, ['taken', 'bad-input', 1, 'bad-input', 'bad-input', 'AbortError', 'bad-input']);
      assert.deepEqual(received, [['PUT', undefined, 'one two']]);
    });

    test('the stream of a small unread answer closes by itself', deadline, async () => {
      const sockets = [];
      const server = createServer(validCertificate, (_, response) => response.end('hello'.repeat(2000)));
      server.on('connection', (socket) => sockets.push(new Promise((resolve) => socket.on('close', resolve))));
      // The server never closes, so only the client does.
      server.keepAliveTimeout = 0;
      const url = `https://127.0.0.1:${await listen(server)}/`;
      const statuses = await page.evaluate(async (url) => {
        const { signal } = new AbortController();
        globalThis.unread = [];
        for (let count = 0; count < 50; count++) unread.push(await umbel.fetch(url, { signal }));
        return unread.map((answer) => answer.status);
      }, url);
      assert.deepEqual(statuses, Array(50).fill(200));
      await Promise.all(sockets);
      assert.equal(sockets.length, 50);
      assert.equal(await page.evaluate(async () => (await unread.pop().text()).length), 10_000, 'the answer can still be read');
    });

    test('an answer is the browser’s Response, can be cloned, and reports truncation', deadline, async () => {
      const broken = await rawSite('HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello');
      const whole = await site(validCertificate, (_, response) => response.end('hello'));
      const outcomes = await page.evaluate(async (broken, whole) => {
        const of = async (url, act) => act(await umbel.fetch(url)).catch((error) => error.kind);
        return [
          await of(broken, (answer) => answer.bytes()),
          await of(broken, (answer) => answer.clone().text()),
          await of(whole, async (answer) => {
            const copy = answer.clone();
            return [copy.url === answer.url, copy.status, await copy.text(), [...(await answer.bytes())].length];
          }),
        ];
      }, `https://127.0.0.1:${broken}/`, `https://127.0.0.1:${whole}/`);
      assert.deepEqual(outcomes, ['target', 'target', [true, 200, 'hello', 5]]);
    });

    test('the time limits for head and body apply to sites that trickle or stall', deadline, async () => {
      // An endless head, sent byte by byte.
      const trickling = await listen(createTlsServer(validCertificate, (socket) => {
        socket.on('error', () => {});
        socket.once('data', () => {
          socket.write('HTTP/1.1 200 OK\r\nx: ');
          const timer = setInterval(() => socket.write('y'), 50);
          socket.on('close', () => clearInterval(timer));
        });
      }));
      const stalling = await site(validCertificate, (_, response) => response.write('begins'));
      for (const port of [trickling, stalling]) {
        await assertFails(`https://127.0.0.1:${port}/`, 'target', /sent nothing in time/, { timeout: 1500 });
      }
      for (const init of [{ timeout: 0 }, { timeout: 'soon' }, { maxBytes: 'few' }, { maxBytes: -1 }]) {
        await assertFails(`https://127.0.0.1:${stalling}/`, 'bad-input', /A limit must be a number/, init);
      }
    });

    test('a site without a valid certificate receives nothing of the request', deadline, async () => {
      const before = receivedPaths.length;
      const cases = [
        [trusted.certificate('DNS:other.example'), /for another site/],
        [untrusted.certificate(NAMES), /no authority that browsers trust/i],
        [trusted.certificate(NAMES, { from: '20200101000000Z', to: '20200201000000Z' }), /expired/],
        [trusted.certificate(NAMES, { from: '20980101000000Z' }), /not valid yet/],
      ];
      for (const [certificate, words] of cases) {
        // TLS 1.2, because in 1.3 all encrypted records have the type of application data.
        const options = { ...certificate, maxVersion: 'TLSv1.2' };
        const { port, seen } = await recorder(await site(options, (_, response) => response.end('hello')));
        await assertFails(`https://127.0.0.1:${port}/${SECRET}`, 'certificate', words, { method: 'POST', body: SECRET });
        const types = records(Buffer.concat(seen.forward)).map(([type]) => type);
        assert(types.includes(22) && !types.includes(23), `records ${types}`);
      }
      assert.equal(receivedPaths.length, before);
    });

    test('redirects are followed to https only, up to a maximum number', deadline, async () => {
      let plain = 0;
      const clear = await listen(createPlainServer((_, response) => {
        plain += 1;
        response.end('in the clear');
      }));
      const seen = [];
      const port = await site(validCertificate, (request, response) => {
        seen.push([request.method, request.url, request.headers.host, request.headers.authorization]);
        const to = { '/first': `https://localhost:${port}/second`, '/second': '/end', '/clear': `http://127.0.0.1:${clear}/`, '/loop': '/loop', '/none': 'https://%', '/named': `https://user:word@127.0.0.1:${port}/` };
        const location = to[request.url];
        if (!location) return response.end(request.url);
        response.writeHead(302, { location });
        response.end('moved');
      });
      const base = `https://127.0.0.1:${port}`;
      const outcome = await fetched(`${base}/first`, { method: 'POST', body: 'x', headers: { authorization: 'Bearer x' } });
      assert.deepEqual([outcome.at, outcome.redirected, outcome.text], [`https://localhost:${port}/end`, true, '/end']);
      assert.deepEqual(seen, [
        ['POST', '/first', `127.0.0.1:${port}`, 'Bearer x'],
        ['GET', '/second', `localhost:${port}`, undefined],
        ['GET', '/end', `localhost:${port}`, undefined],
      ]);
      await assertFails(`${base}/clear`, 'refused', /without https/);
      assert.equal(plain, 0);
      await assertFails(`${base}/loop`, 'target', /too often/);
      for (const path of ['/none', '/named']) await assertFails(`${base}${path}`, 'target', /invalid or unsupported URL/);
      await assertFails(`${base}/first`, 'target', /disallows redirects/, { redirect: 'error' });
      assert.equal((await fetched(`${base}/first`, { redirect: 'manual' })).status, 302);
    });

    test('a URL without https and a server without TLS receive no request', deadline, async () => {
      let requested = 0;
      const port = await listen(createPlainServer((_, response) => {
        requested += 1;
        response.end('in the clear');
      }));
      await assertFails(`http://127.0.0.1:${port}/`, 'bad-input', /https URLs only/);
      await assertFails(`https://user:word@127.0.0.1:${port}/`, 'bad-input', /not allowed/);
      await assertFails('file:///etc/hostname', 'bad-input', /https/);
      await assertFails(`https://127.0.0.1:${port}/`, 'target', /not TLS|truncated|closed the stream early/);
      assert.equal(requested, 0);
    });

    test('truncated, invalid and endless answers are errors with a reason', deadline, async () => {
      const hello = 'HTTP/1.1 200 OK\r\n';
      const cases = [
        [await rawSite(`${hello}content-length: 9\r\n\r\nhello`), /truncated|closed the stream early/],
        [await rawSite(`${hello}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n`), /truncated|closed the stream early/],
        [await rawSite(`${hello}transfer-encoding: chunked\r\n\r\nno length\r\n`), /truncated|closed the stream early/],
        [await rawSite(`${hello}\r\nhello`, false), /truncated|closed the stream early/],
        [await rawSite('SSH-2.0-OpenSSH_9.2\r\n'), /not HTTP/],
        [await rawSite(`${hello}${'x: y\r\n'.repeat(500_000)}`), /head is too large/],
        [await rawSite(''), /truncated|closed the stream early/],
        [await listen(createTcpServer((socket) => socket.on('error', () => {}).end('HTTP/1.1 400 Bad Request\r\n\r\n'))), /not TLS/],
        [await listen(createTcpServer((socket) => socket.on('error', () => {}).once('data', () => socket.destroy()))), /truncated|closed the stream early/],
        [await listen(createTcpServer((socket) => socket.on('error', () => {}).end(Buffer.from([21, 3, 3, 0, 2, 2, 40])))), /refused or aborted TLS/],
      ];
      for (const [port, words] of cases) await assertFails(`https://127.0.0.1:${port}/`, 'target', words);
      assert.equal((await fetched(`https://127.0.0.1:${await rawSite(`${hello}\r\nhello`)}/`)).text, 'hello', 'close_notify authenticates the end of the body');
      const endless = await site(validCertificate, (_, response) => {
        const more = () => {
          while (!response.destroyed && response.write(BODY));
        };
        response.on('drain', more);
        more();
      });
      await assertFails(`https://127.0.0.1:${endless}/`, 'target', /exceeds the maximum size/, { maxBytes: 3_000_000 });
      await assertFails(`https://127.0.0.1:${endless}/`, 'target', /exceeds the maximum size/, { maxBytes: 0 });
      const closed = await listen(createTcpServer());
      closers.pop()();
      await assertFails(`https://127.0.0.1:${closed}/`, 'target', /refused the connection/);
      await assertFails('https://nowhere.invalid/', 'refused', /has a reserved name/);
    });

    test('an abort ends a fetch before and within the answer, and closes the stream to the site', deadline, async () => {
      let closed;
      const silent = await site(validCertificate, (request) => (closed = new Promise((resolve) => request.on('close', resolve))));
      const outcome = await fetched(`https://127.0.0.1:${silent}/`, { cancelled: 1500 });
      assert.equal(outcome.name, 'TimeoutError');
      await closed;
      const begins = await site(validCertificate, (request, response) => {
        closed = new Promise((resolve) => request.socket.on('close', resolve));
        response.write('begins');
      });
      const within = await page.evaluate(async (url) => {
        const controller = new AbortController();
        const answer = await umbel.fetch(url, { signal: controller.signal });
        const reader = answer.body.getReader();
        const { value } = await reader.read();
        const rest = reader.read().catch((error) => error.name);
        controller.abort();
        const late = await umbel.fetch(url, { signal: controller.signal }).catch((error) => error.name);
        return [new TextDecoder().decode(value), await rest, late];
      }, `https://127.0.0.1:${begins}/`);
      assert.deepEqual(within, ['begins', 'AbortError', 'AbortError']);
      await closed;
    });

    test('concurrent fetches do not mix', deadline, async () => {
      const port = await site(validCertificate, (request, response) => response.end(`${request.headers.host}${request.url} `.repeat(20_000)));
      const urls = Array.from({ length: 8 }, (_, number) => `https://${number % 2 ? 'localhost' : '127.0.0.1'}:${port}/${number}`);
      const texts = await page.evaluate(
        (urls) => Promise.all(urls.map(async (url) => (await umbel.fetch(url)).text())), urls);
      assert.deepEqual(texts, urls.map((url) => `${url.slice('https://'.length)} `.repeat(20_000)));
    });

    test('closing the client ends its fetches, and the page itself requested no site', deadline, async (t) => {
      const hello = await site(validCertificate, (_, response) => response.end('hello'));
      const silent = await site(validCertificate, () => {});
      const took = await page.evaluate(async (pem, url, silent) => {
        const timed = async (act) => {
          const started = performance.now();
          await act();
          return Math.round(performance.now() - started);
        };
        const request = async () => (await umbel.fetch(url)).text();
        umbel.close();
        globalThis.umbel = await connect({ trust: [pem] });
        const [first, warm] = [await timed(request), await timed(request)];
        const pending = umbel.fetch(silent).catch((error) => error.kind);
        await request();
        umbel.close();
        return { first, warm, closed: [await pending, await umbel.fetch(url).catch((error) => error.kind)] };
      }, trusted.pem, `https://127.0.0.1:${hello}/`, `https://127.0.0.1:${silent}/`);
      assert.deepEqual(took.closed, ['closed', 'closed']);
      t.diagnostic(`the first fetch of a host ${took.first} ms, the next ${took.warm} ms`);
      assert.deepEqual(requested.filter((url) => !url.startsWith(`${overlay.directory}/`)), []);
    });
  });
}
