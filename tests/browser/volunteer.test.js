// A tab as a relay of native clients: what crosses it, and what its limits hold.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { launch } from './browsers.js';
import { testnet } from './testnet.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const LENGTH = 20_000_000;
// No byte tells where it stands, so that a piece in another place is noticed.
const body = Buffer.alloc(LENGTH, createHash('sha512').update('umbel').digest());
for (let at = 0; at < LENGTH; at += 4096) body.writeUInt32BE(at, at);
const digest = createHash('sha256').update(body).digest('hex');

const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

let overlay, network, driver, origin, at;
const clients = [];

before(async () => {
  overlay = await testnet();
  network = await (await fetch(`${overlay.directory}/umbel.json`)).json();
  origin = createServer((request, response) => response.end(request.url === '/body' ? body : 'one byte or so'));
  await new Promise((resolve) => origin.listen(0, '127.0.0.1', resolve));
  at = `http://127.0.0.1:${origin.address().port}`;
  driver = await launch('chrome');
}, { timeout: 600000 });

after(async () => {
  await driver?.close();
  await Promise.all(clients.map((client) => client.stop()));
  origin?.closeAllConnections();
  origin?.close();
  await overlay?.stop();
});

// A tab that volunteers, once it can be reached.
async function volunteer(limits = {}) {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
  await page.evaluate(async (limits) => {
    const { volunteer } = await import('/umbel.js');
    globalThis.tab = await volunteer({ network: '/umbel.json', limits, onstate: () => undefined });
  }, limits);
  await page.waitForFunction(() => globalThis.tab.state.phase === 'reachable', { timeout: 30000, polling: 50 });
  const state = () => page.evaluate(() => globalThis.tab.state);
  return { page, state, identity: (await state()).identity, close: () => context.close() };
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// A native client whose circuits go through `middle`.
async function client(middle) {
  const folder = mkdtempSync(join(tmpdir(), 'umbel-client-'));
  const port = await freePort();
  const options = [
    ...network.directories.map((directory) => `--directory=${directory}`),
    ...network.authorities.map((authority) => `--authority=${authority}`),
    `--socks=127.0.0.1:${port}`, '--http=127.0.0.1:0', '--page=127.0.0.1:0',
    `--data-dir=${folder}`, `--middle=${middle}`, '--log=info',
  ];
  const child = spawn('cargo', ['run', '--quiet', '--', 'client', ...options], { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const lines = [];
  const ready = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line);
        if (line.includes('ready: the ports take requests')) resolve();
      });
    }
    ended.then(() => reject(new Error(`the client ended:\n${lines.join('\n')}`)));
  });
  const made = {
    socks: `socks5h://127.0.0.1:${port}`,
    stop: async () => {
      child.kill('SIGTERM');
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
  clients.push(made);
  await ready;
  return made;
}

// What curl has of `path` through `proxy`, and whether it says that it had all of it.
const fetched = (proxy, path, ...options) =>
  new Promise((resolve) => {
    const began = performance.now();
    const all = ['--silent', '--show-error', '--proxy', proxy, ...options, at + path];
    execFile('curl', all, { encoding: 'buffer', maxBuffer: 2 * LENGTH }, (error, bytes) =>
      resolve({ whole: !error, bytes, seconds: (performance.now() - began) / 1000 }));
  });

describe('a tab as the middle relay', () => {
  test('carries 20 MB byte for byte, counts them, and it was that tab', { timeout: 240000 }, async () => {
    const tab = await volunteer();
    const through = await client(tab.identity);
    const { whole, bytes, seconds } = await fetched(through.socks, '/body');
    assert(whole);
    assert.equal(sha256(bytes), digest);
    console.log(`through a tab: 20 MB in ${seconds.toFixed(1)} s, ${(LENGTH / 2 ** 20 / seconds).toFixed(1)} MiB/s`);
    await tab.page.waitForFunction((least) => globalThis.tab.state.bytesTotal >= least, { timeout: 10000, polling: 100 }, LENGTH);
    // Without it nothing comes, and what was under way ends with an error and not as if it were whole.
    const half = fetched(through.socks, '/body', '--limit-rate', '2M');
    await tab.page.waitForFunction((least) => globalThis.tab.state.bytesTotal >= least, { timeout: 60000, polling: 100 }, LENGTH + 1e6);
    await tab.close();
    assert.equal((await half).whole, false);
  });

  test('passes on no more than it was told to', { timeout: 240000 }, async () => {
    const RATE = 2_000_000;
    const tab = await volunteer({ bytesPerSecond: RATE });
    const through = await client(tab.identity);
    const { whole, bytes, seconds } = await fetched(through.socks, '/body');
    assert(whole);
    assert.equal(sha256(bytes), digest);
    // A second's worth may have been saved up.
    assert(seconds >= LENGTH / RATE - 1, `20 MB in ${seconds} s`);
    await tab.close();
  });

  test('stops for good once the total is reached', { timeout: 240000 }, async () => {
    const tab = await volunteer({ bytesTotal: 3_000_000 });
    const through = await client(tab.identity);
    await fetched(through.socks, '/body', '--max-time', '60');
    await tab.page.waitForFunction(() => globalThis.tab.state.phase === 'paused', { timeout: 20000, polling: 100 });
    const { why, circuits, gateways } = await tab.state();
    assert.match(why, /amount that you set/);
    assert.deepEqual([circuits, gateways], [0, 0]);
    await tab.close();
  });

  test('is there again after its network was gone, as the same relay', { timeout: 240000 }, async () => {
    const tab = await volunteer();
    await tab.page.setOfflineMode(true);
    await tab.page.waitForFunction(() => globalThis.tab.state.phase === 'paused', { timeout: 20000, polling: 100 });
    await tab.page.setOfflineMode(false);
    await tab.page.waitForFunction(() => globalThis.tab.state.phase === 'reachable', { timeout: 30000, polling: 100 });
    assert.equal((await tab.state()).identity, tab.identity);
    const through = await client(tab.identity);
    const { whole, bytes } = await fetched(through.socks, '/');
    assert(whole);
    assert.equal(bytes.toString(), 'one byte or so');
    await tab.close();
  });
});
