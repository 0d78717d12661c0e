// Directories and relays that mean harm, against the pages: what they give is not used, the page says so in plain words, and speaks to nobody else.
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { elsewhere, unreachable } from './addresses.js';
import { BROWSERS, launch } from './browsers.js';
import { umbel } from './program.js';
import { testnet } from './testnet.js';

const deadline = { timeout: 120000 };
const TERMS = 'message';
const CONSENSUS = '/v1/consensus';
// No list of relays is so long.
const MOST = 64 << 20;

const base32 = (bytes) => {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  return bits.match(/.{1,5}/g).map((five) => 'abcdefghijklmnopqrstuvwxyz234567'[parseInt(five.padEnd(5, '0'), 2)]).join('');
};
// Somebody's key who has no say in the network.
const stranger = () => base32(generateKeyPairSync('ed25519').publicKey.export({ format: 'der', type: 'spki' }).subarray(-32));

// A directory that serves the pages and answers as that of `overlay`, but to what `answers` names otherwise.
async function directory(overlay, answers = {}) {
  const network = await (await fetch(`${overlay.directory}/umbel.json`)).json();
  const given = { answers, authorities: network.authorities };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://directory');
    if (given.answers[pathname]) return given.answers[pathname](request, response);
    if (pathname === '/umbel.json') return response.end(JSON.stringify({ directories: [given.url], authorities: given.authorities }));
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
  given.url = `http://127.0.0.1:${server.address().port}`;
  given.stop = () => {
    server.closeAllConnections();
    server.close();
  };
  return given;
}

for (const browser of Object.keys(BROWSERS)) {
  describe(`${browser} and those who mean harm`, { skip: unreachable(browser, elsewhere()) }, () => {
    let overlay, driver;
    const stops = [];

    before(async () => {
      overlay = await testnet({ address: elsewhere() });
      driver = await launch(browser);
    }, { timeout: 600000 });

    after(async () => {
      await driver?.close();
      for (const stop of stops) await stop();
      await overlay?.stop();
    });

    // A page of `given` with a storage of its own, and every address that it asks for.
    async function open(given, path, prepare) {
      const context = await driver.createBrowserContext();
      const page = await context.newPage();
      const asked = [];
      page.on('request', (request) => request.url().startsWith('data:') || asked.push(request.url()));
      await prepare?.(page);
      await page.goto(given.url + path, { waitUntil: 'load' });
      const says = (selector, words, timeout = 30000) =>
        page.waitForFunction((selector, words) => document.querySelector(selector)?.textContent.includes(words), { timeout }, selector, words);
      const close = async () => {
        assert(asked.length > 0);
        assert.deepEqual(asked.filter((url) => !url.startsWith(`${given.url}/`)), [], 'nobody else was asked');
        await context.close();
      };
      return { page, says, close };
    }

    async function hostile(answers) {
      const given = await directory(overlay, answers);
      stops.push(given.stop);
      return given;
    }

    // What both pages say.
    async function told(given, found, relayed, prepare) {
      const search = await open(given, '/search', prepare);
      await search.says('.warn', found);
      await search.says('.warn', 'othing was sent');
      await search.close();
      const volunteer = await open(given, '/volunteer', prepare);
      await volunteer.page.click('#switch');
      await volunteer.says('#why', relayed);
      assert.equal(await volunteer.page.$eval('#state', (one) => one.textContent), 'Failed');
      await volunteer.close();
    }

    const searches = async ({ page }) => {
      await page.waitForSelector('#q');
      await page.type('#q', TERMS);
      await page.keyboard.press('Enter');
      await page.waitForSelector('.results li', { timeout: 30000 });
    };

    test('a list of relays with a forged signature is not used', deadline, async () => {
      const consensus = Buffer.from(await (await fetch(overlay.directory + CONSENSUS)).arrayBuffer());
      consensus[consensus.length - 1] ^= 1;
      const given = await hostile({ [CONSENSUS]: (_, response) => response.end(consensus) });
      await told(given, 'not signed by this network\'s authorities', 'not signed by this network\'s authorities');
    });

    test('nor one that only strangers have signed', deadline, async () => {
      const given = await hostile({});
      given.authorities = [stranger()];
      await told(given, 'not signed by this network\'s authorities', 'not signed by this network\'s authorities');
    });

    test('nor one that never ends, of which little is read', deadline, async () => {
      let sent = 0;
      let open = 0;
      const given = await hostile({
        [CONSENSUS]: (_, response) => {
          const piece = Buffer.alloc(1 << 16);
          open += 1;
          const write = () => {
            while (!response.destroyed && sent < 4 * MOST) {
              sent += piece.length;
              if (!response.write(piece)) return;
            }
          };
          response.on('drain', write);
          response.on('close', () => (open -= 1));
          write();
        },
      });
      await told(given, 'exceeds the maximum length of the document', 'exceeds the maximum length of the document');
      assert(sent < MOST, `${sent} bytes`);
      assert.equal(open, 0, 'the page has hung up');
    });

    // It waits for a list and for a page's next look, a minute each, and has nothing in it that browsers do differently.
    const once = { timeout: 240000, skip: browser === 'firefox' };
    test('an old list that is given again changes nothing for a page that knows a newer one', once, async () => {
      const latest = async () => Buffer.from(await (await fetch(overlay.directory + CONSENSUS)).arrayBuffer());
      const old = await latest();
      const began = performance.now();
      while ((await latest()).equals(old)) {
        assert(performance.now() - began < 90000, 'the network signs a list each minute');
        await new Promise((resolve) => setTimeout(resolve, 500));
      }
      const given = await hostile({});
      let replayed = 0;
      const tab = await open(given, '/search', (page) => page.evaluateOnNewDocument(() => {
        const now = Date.now.bind(Date);
        globalThis.ahead = 0;
        Date.now = () => now() + globalThis.ahead;
      }));
      await searches(tab);
      given.answers = {
        [CONSENSUS]: (_, response) => {
          replayed += 1;
          response.end(old);
        },
      };
      // The page looks at the clock each minute, and what it has is not the freshest any more.
      await tab.page.evaluate(() => (globalThis.ahead = 10 * 60 * 1000));
      const waited = performance.now();
      while (replayed === 0) {
        assert(performance.now() - waited < 100000, 'the page asks for a newer list');
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      await tab.page.$eval('#q', (one) => (one.value = ''));
      await tab.page.$eval('.results', (one) => one.remove());
      await searches(tab);
      await tab.close();
    });

    const HOUR = 3_600_000;
    // Told to the page before anything of it runs.
    const ahead = (milliseconds) => (page) => page.evaluateOnNewDocument((milliseconds) => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + milliseconds;
    }, milliseconds);

    test('a clock more than an hour slow is told as such', deadline, async () => {
      const given = await hostile({});
      await told(given, 'clock is wrong', 'check the clock', ahead(-1.1 * HOUR));
    });

    test('a clock more than an hour fast keeps a volunteer out, which says so, and no searcher', deadline, async () => {
      const given = await hostile({});
      const volunteer = await open(given, '/volunteer', ahead(1.1 * HOUR));
      await volunteer.page.click('#switch');
      await volunteer.says('#why', 'check the');
      await volunteer.close();
      const search = await open(given, '/search', ahead(1.1 * HOUR));
      await searches(search);
      await search.close();
    });

    for (const [how, off] of [['fast', 0.9], ['slow', -0.9]]) {
      test(`a clock less than an hour ${how} keeps nobody out`, deadline, async () => {
        const given = await hostile({});
        const volunteer = await open(given, '/volunteer', ahead(off * HOUR));
        await volunteer.page.click('#switch');
        await volunteer.says('#why', 'gateway');
        await volunteer.close();
        const search = await open(given, '/search', ahead(off * HOUR));
        await searches(search);
        await search.close();
      });
    }
  });

  describe(`${browser} and others in the places of relays`, { skip: unreachable(browser, elsewhere()) }, () => {
    let overlay, driver, folder;
    const impostors = [];

    before(async () => {
      folder = mkdtempSync(join(tmpdir(), 'umbel-hostile-'));
      overlay = await testnet({ address: elsewhere(), relays: 3, options: ['--exits=1', `--dir=${folder}`, '--log=warn'] });
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

    // Puts another in the relay's place: at its address, with its certificate, and of another identity.
    async function replace(name) {
      const own = join(folder, name);
      const data = join(folder, `impostor-${name}`);
      const args = (pid) => {
        try {
          return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
        } catch {
          return [];
        }
      };
      const pid = readdirSync('/proc').filter((entry) => /^\d+$/.test(entry)).find((pid) => args(pid).includes(`--data-dir=${own}`));
      process.kill(Number(pid), 'SIGKILL');
      cpSync(own, data, { recursive: true });
      rmSync(join(data, 'identity.key'));
      const address = readFileSync(join(folder, `${name}.address`), 'utf8').trim();
      // It is to register nowhere.
      const nowhere = ['--directory=http://127.0.0.1:9', `--authority=${stranger()}`];
      const child = umbel(['relay', `--listen=${address}`, `--data-dir=${data}`, '--log=debug', ...nowhere], ['ignore', 'pipe']);
      const impostor = { child, ended: new Promise((resolve) => child.once('exit', resolve)) };
      impostors.push(impostor);
      await new Promise((resolve, reject) => {
        createInterface({ input: child.stderr }).on('line', (line) => {
          if (line.includes('relay started')) resolve();
        });
        impostor.ended.then(() => reject(new Error('the impostor ended')));
      });
    }

    test('none of them is used, and both pages say that they reach no relay', { timeout: 180000 }, async () => {
      const visit = async (path) => {
        const page = await (await driver.createBrowserContext()).newPage();
        const asked = [];
        page.on('request', (request) => request.url().startsWith('data:') || asked.push(request.url()));
        await page.goto(overlay.directory + path, { waitUntil: 'load' });
        return { page, asked };
      };
      const says = (page, selector, words) =>
        page.waitForFunction((selector, words) => document.querySelector(selector)?.textContent.includes(words), { timeout: 60000 }, selector, words);
      const [volunteer, search] = [await visit('/volunteer'), await visit('/search')];
      await volunteer.page.click('#switch');
      await says(search.page, '.warn', 'network can’t be reached');
      await volunteer.page.bringToFront();
      await says(volunteer.page, '#why', 'gateway of this volunteer can be reached');
      for (const { asked } of [volunteer, search]) {
        assert(asked.length > 0);
        assert.deepEqual(asked.filter((url) => !url.startsWith(`${overlay.directory}/`)), []);
      }
    });
  });
}
