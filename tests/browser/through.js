// A volunteer in a tab, native clients with circuits through the tab, and a site for the clients' requests.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before } from 'node:test';

import { launch } from './browsers.js';
import { umbel } from './program.js';
import { testnet } from './testnet.js';

export const LENGTH = 20_000_000;
// Each block of 4,096 bytes begins with its position, so that a displaced piece is detected.
const body = Buffer.alloc(LENGTH, createHash('sha512').update('umbel').digest());
for (let at = 0; at < LENGTH; at += 4096) body.writeUInt32BE(at, at);

export const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');
export const digest = sha256(body);

const defaultHandler = (request, response) => response.end(request.url === '/body' ? body : 'one byte or so');

// Starts a server with `handler`. By default it serves the body at /body and a few words elsewhere.
export async function serve(handler = defaultHandler) {
  const server = createServer(handler);
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

// Starts an overlay with relays at `address`, a site with `handler`, and `browser` before the tests of this suite. Stops all of them
// after the tests, with the `clients` that the tests have added.
export function fixture(browser, { address, handler } = {}) {
  const all = { clients: [] };
  before(async () => {
    all.overlay = await testnet({ address });
    all.site = await serve(handler);
    all.driver = await launch(browser);
  }, { timeout: 600000 });
  after(async () => {
    await all.driver?.close();
    await Promise.all(all.clients.map((client) => client.stop()));
    all.site?.stop();
    await all.overlay?.stop();
  });
  return all;
}

// A reachable volunteer of `overlay` in a tab of `driver` with a separate profile.
export async function volunteer(driver, overlay, limits = {}) {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
  await page.evaluate(async (limits) => {
    const { volunteer } = await import('/umbel.js');
    globalThis.tab = await volunteer({ network: '/umbel.json', limits, onstate: () => undefined });
  }, limits);
  const tab = {
    page,
    state: () => page.evaluate(() => globalThis.tab.state),
    // Waits until `holds(state, value)` is true.
    until: (holds, value, timeout = 30000) =>
      page.waitForFunction(`(${holds})(globalThis.tab.state, ${JSON.stringify(value)})`, { timeout, polling: 50 }),
    close: () => context.close(),
  };
  await tab.until((state) => state.phase === 'reachable');
  return { ...tab, identity: (await tab.state()).identity };
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// Starts a native client of `overlay` with additional `options`, without waiting until it is ready.
export async function startClient(overlay, options = []) {
  const network = await (await fetch(`${overlay.directory}/umbel.json`)).json();
  const folder = mkdtempSync(join(tmpdir(), 'umbel-client-'));
  const port = await freePort();
  const all = [
    ...network.directories.map((directory) => `--directory=${directory}`),
    ...network.authorities.map((authority) => `--authority=${authority}`),
    `--socks=127.0.0.1:${port}`, '--http=127.0.0.1:0', '--page=127.0.0.1:0',
    `--data-dir=${folder}`, '--log=info', ...options,
  ];
  const child = umbel(['client', ...all], ['pipe', 'pipe']);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const lines = [];
  const ready = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line);
        if (line.includes('ready: the first circuit is built')) resolve();
      });
    }
    ended.then(() => reject(new Error(`the client ended:\n${lines.join('\n')}`)));
  });
  // Without a caller that waits for `ready`, its failure must not be an unhandled rejection.
  ready.catch(() => undefined);
  return {
    socks: `socks5h://127.0.0.1:${port}`,
    ready,
    stop: async () => {
      child.kill('SIGTERM');
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

// A native client that is ready and has `middle` as the middle relay of all circuits.
export async function readyClient(overlay, middle) {
  const started = await startClient(overlay, [`--middle=${middle}`]);
  try {
    await started.ready;
  } catch (error) {
    await started.stop();
    throw error;
  }
  return started;
}

// Fetches `url` by curl through `proxy`; `whole` is whether curl reports success.
export const fetchByCurl = (proxy, url, options = []) =>
  new Promise((resolve) => {
    const start = performance.now();
    const all = ['--silent', '--show-error', '--proxy', proxy, ...options, url];
    execFile('curl', all, { encoding: 'buffer', maxBuffer: 2 * LENGTH }, (error, bytes) =>
      resolve({ whole: !error, bytes, seconds: (performance.now() - start) / 1000 }));
  });
