// Hostile directories and relays: the pages don't use their data, but report the failure, and contact no other server.
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS, launch } from './browsers.js';
import { umbel } from './program.js';
import { testnet } from './testnet.js';

const withTimeout = { timeout: 120000 };
const TERMS = 'message';
const CONSENSUS = '/v1/consensus';
// Longer than any valid consensus, in bytes.
const MAX_LENGTH = 64 << 20;

const base32 = (bytes) => {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  return bits.match(/.{1,5}/g).map((five) => 'abcdefghijklmnopqrstuvwxyz234567'[parseInt(five.padEnd(5, '0'), 2)]).join('');
};
// A key that is not an authority of the network.
const foreignKey = () => base32(generateKeyPairSync('ed25519').publicKey.export({ format: 'der', type: 'spki' }).subarray(-32));

// A directory that serves the pages and forwards requests to the directory of `overlay`, except for the paths in `answers`.
async function directory(overlay, answers = {}) {
  const network = await (await fetch(`${overlay.directory}/umbel.json`)).json();
  const hostileDirectory = { answers, authorities: network.authorities };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://directory');
    if (hostileDirectory.answers[pathname]) return hostileDirectory.answers[pathname](request, response);
    if (pathname === '/umbel.json') return response.end(JSON.stringify({ directories: [hostileDirectory.url], authorities: hostileDirectory.authorities }));
    const body = [];
    for await (const piece of request) body.push(piece);
    const answer = await fetch(overlay.directory + request.url, {
      method: request.method,
      body: body.length > 0 ? Buffer.concat(body) : undefined,
    });
    for (const name of ['content-type', 'content-security-policy']) {
      if (answer.headers.has(name)) response.setHeader(name, answer.headers.get(name));
    }
    response.writeHead(answer.status);
    return response.end(Buffer.from(await answer.arrayBuffer()));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  hostileDirectory.url = `http://127.0.0.1:${server.address().port}`;
  hostileDirectory.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return hostileDirectory;
}

for (const browser of Object.keys(BROWSERS)) {
  describe(`${browser} with a hostile directory`, { skip: skipReason(browser, nonLoopbackAddress()) }, () => {
    let overlay, driver;
    const stops = [];

    before(async () => {
      overlay = await testnet({ address: nonLoopbackAddress() });
      driver = await launch(browser);
    }, { timeout: 600000 });

    after(async () => {
      await driver?.close();
      for (const stop of stops) await stop();
      await overlay?.stop();
    });

    // A page of `hostileDirectory` with separate storage, and the URLs of its requests.
    async function open(hostileDirectory, path, prepare) {
      const context = await driver.createBrowserContext();
      const page = await context.newPage();
      const requested = [];
      page.on('request', (request) => request.url().startsWith('data:') || requested.push(request.url()));
      await prepare?.(page);
      await page.goto(hostileDirectory.url + path, { waitUntil: 'load' });
      const waitForText = (selector, words, timeout = 30000) =>
        page.waitForFunction((selector, words) => document.querySelector(selector)?.textContent.includes(words), { timeout }, selector, words);
      const close = async () => {
        assert(requested.length > 0);
        assert.deepEqual(requested.filter((url) => !url.startsWith(`${hostileDirectory.url}/`)), [], 'no other server was contacted');
        await context.close();
      };
      return { page, waitForText, close };
    }

    async function hostile(answers) {
      const hostileDirectory = await directory(overlay, answers);
      stops.push(hostileDirectory.stop);
      return hostileDirectory;
    }

    // Asserts that the search page shows `searchText`, and the volunteer's page `volunteerText`.
    async function assertMessages(hostileDirectory, searchText, volunteerText, prepare) {
      const search = await open(hostileDirectory, '/search', prepare);
      await search.waitForText('.warn', searchText);
      await search.waitForText('.warn', 'othing was sent');
      await search.close();
      const volunteer = await open(hostileDirectory, '/volunteer', prepare);
      await volunteer.page.click('#switch');
      await volunteer.waitForText('#why', volunteerText);
      assert.equal(await volunteer.page.$eval('#state', (element) => element.textContent), 'Failed');
      await volunteer.close();
    }

    const searches = async ({ page }) => {
      await page.waitForSelector('#q');
      await page.type('#q', TERMS);
      await page.keyboard.press('Enter');
      await page.waitForSelector('.results li', { timeout: 30000 });
    };

    test('a consensus with a forged signature is not used', withTimeout, async () => {
      const consensus = Buffer.from(await (await fetch(overlay.directory + CONSENSUS)).arrayBuffer());
      consensus[consensus.length - 1] ^= 1;
      const hostileDirectory = await hostile({ [CONSENSUS]: (_, response) => response.end(consensus) });
      await assertMessages(hostileDirectory, 'not signed by this network\'s authorities', 'not signed by this network\'s authorities');
    });

    test('a consensus that no authority of the network has signed is not used', withTimeout, async () => {
      const hostileDirectory = await hostile({});
      hostileDirectory.authorities = [foreignKey()];
      await assertMessages(hostileDirectory, 'not signed by this network\'s authorities', 'not signed by this network\'s authorities');
    });

    test('an endless consensus is not used, and the pages abort the transfer', withTimeout, async () => {
      let sent = 0;
      let open = 0;
      const hostileDirectory = await hostile({
        [CONSENSUS]: (_, response) => {
          const piece = Buffer.alloc(1 << 16);
          open += 1;
          const write = () => {
            while (!response.destroyed && sent < 4 * MAX_LENGTH) {
              sent += piece.length;
              if (!response.write(piece)) return;
            }
          };
          response.on('drain', write);
          response.on('close', () => (open -= 1));
          write();
        },
      });
      await assertMessages(hostileDirectory, 'exceeds the maximum length of the document', 'exceeds the maximum length of the document');
      assert(sent < MAX_LENGTH, `${sent} bytes`);
      assert.equal(open, 0, 'the page has closed the connection');
    });

    // This test waits for a new consensus and for the page's next check, a minute each. Its result does not depend on the browser.
    const once = { timeout: 240000, skip: browser === 'firefox' };
    test('a replayed old consensus does not replace a newer one', once, async () => {
      const latest = async () => Buffer.from(await (await fetch(overlay.directory + CONSENSUS)).arrayBuffer());
      const old = await latest();
      const start = performance.now();
      while ((await latest()).equals(old)) {
        assert(performance.now() - start < 90000, 'the network signs a consensus each minute');
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
      const hostileDirectory = await hostile({});
      let replayed = 0;
      const tab = await open(hostileDirectory, '/search', (page) => page.evaluateOnNewDocument(() => {
        const now = Date.now.bind(Date);
        globalThis.ahead = 0;
        Date.now = () => now() + globalThis.ahead;
      }));
      await searches(tab);
      hostileDirectory.answers = {
        [CONSENSUS]: (_, response) => {
          replayed += 1;
          response.end(old);
        },
      };
      // The page checks the clock each minute. With the clock ahead, the consensus of the page is no longer fresh.
      await tab.page.evaluate(() => (globalThis.ahead = 10 * 60 * 1000));
      const waited = performance.now();
      while (replayed === 0) {
        assert(performance.now() - waited < 100000, 'the page requests a newer consensus');
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      await tab.page.$eval('#q', (element) => (element.value = ''));
      await tab.page.$eval('.results', (element) => element.remove());
      await searches(tab);
      await tab.close();
    });

    const HOUR = 3_600_000;
    // Sets the page's clock ahead by `milliseconds` before its scripts run.
    const ahead = (milliseconds) => (page) => page.evaluateOnNewDocument((milliseconds) => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + milliseconds;
    }, milliseconds);

    test('a clock more than an hour slow is reported as the cause', withTimeout, async () => {
      const hostileDirectory = await hostile({});
      await assertMessages(hostileDirectory, 'clock is wrong', 'check the clock', ahead(-1.1 * HOUR));
    });

    test('a clock more than an hour fast prevents volunteering, with the reason, but not searching', withTimeout, async () => {
      const hostileDirectory = await hostile({});
      const volunteer = await open(hostileDirectory, '/volunteer', ahead(1.1 * HOUR));
      await volunteer.page.click('#switch');
      await volunteer.waitForText('#why', 'check the');
      await volunteer.close();
      const search = await open(hostileDirectory, '/search', ahead(1.1 * HOUR));
      await searches(search);
      await search.close();
    });

    for (const [how, hours] of [['fast', 0.9], ['slow', -0.9]]) {
      test(`a clock less than an hour ${how} prevents neither volunteering nor searching`, withTimeout, async () => {
        const hostileDirectory = await hostile({});
        const volunteer = await open(hostileDirectory, '/volunteer', ahead(hours * HOUR));
        await volunteer.page.click('#switch');
        await volunteer.waitForText('#why', 'gateway');
        await volunteer.close();
        const search = await open(hostileDirectory, '/search', ahead(hours * HOUR));
        await searches(search);
        await search.close();
      });
    }
  });

  describe(`${browser} with impostors of relays`, { skip: skipReason(browser, nonLoopbackAddress()) }, () => {
    let overlay, driver, folder;
    const impostors = [];

    before(async () => {
      folder = mkdtempSync(join(tmpdir(), 'umbel-hostile-'));
      overlay = await testnet({ address: nonLoopbackAddress(), relays: 3, options: ['--exits=1', `--dir=${folder}`, '--log=warn'] });
      driver = await launch(browser);
      for (const number of [1, 2, 3]) await replace(`relay${number}`);
    }, { timeout: 600000 });

    after(async () => {
      await driver?.close();
      for (const impostor of impostors) {
        impostor.child.kill('SIGTERM');
        await impostor.ended;
      }
      await overlay?.stop();
      rmSync(folder, { recursive: true, force: true });
    });

    // Replaces a relay by an impostor with the same address and certificate but another identity.
    async function replace(name) {
      const relayFolder = join(folder, name);
      const impostorFolder = join(folder, `impostor-${name}`);
      const args = (pid) => {
        try {
          return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
        } catch {
          return [];
        }
      };
      const pid = readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).find((pid) => args(pid).includes(`--data-dir=${relayFolder}`));
      process.kill(Number(pid), 'SIGKILL');
      cpSync(relayFolder, impostorFolder, { recursive: true });
      rmSync(join(impostorFolder, 'identity.key'));
      const address = readFileSync(join(folder, `${name}.address`), 'utf8').trim();
      // The impostor must not register with the directory.
      const noDirectory = ['--directory=http://127.0.0.1:9', `--authority=${foreignKey()}`];
      const child = umbel(['relay', `--listen=${address}`, `--data-dir=${impostorFolder}`, '--log=debug', ...noDirectory], ['ignore', 'pipe']);
      const impostor = { child, ended: new Promise((resolve) => child.once('exit', resolve)) };
      impostors.push(impostor);
      await new Promise((resolve, reject) => {
        createInterface({ input: child.stderr }).on('line', (line) => {
          if (line.includes('relay started')) resolve();
        });
        impostor.ended.then(() => reject(new Error('the impostor ended')));
      });
    }

    test('both pages use no impostor, and report that no relay can be reached', { timeout: 180000 }, async () => {
      const visit = async (path) => {
        const page = await (await driver.createBrowserContext()).newPage();
        const requested = [];
        page.on('request', (request) => request.url().startsWith('data:') || requested.push(request.url()));
        await page.goto(overlay.directory + path, { waitUntil: 'load' });
        return { page, requested };
      };
      const waitForText = (page, selector, words) =>
        page.waitForFunction((selector, words) => document.querySelector(selector)?.textContent.includes(words), { timeout: 60000 }, selector, words);
      const [volunteer, search] = [await visit('/volunteer'), await visit('/search')];
      await volunteer.page.click('#switch');
      await waitForText(search.page, '.warn', 'network can’t be reached');
      await volunteer.page.bringToFront();
      await waitForText(volunteer.page, '#why', 'gateway of this volunteer can be reached');
      for (const { requested } of [volunteer, search]) {
        assert(requested.length > 0);
        assert.deepEqual(requested.filter((url) => !url.startsWith(`${overlay.directory}/`)), []);
      }
    });
  });
}
