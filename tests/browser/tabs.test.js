// Ten tabs as volunteers: some tabs end or restart while a native client and another tab use the volunteers.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, describe, test } from 'node:test';

import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { serve } from './through.js';

const TABS = 10;
const REQUESTS = 400;
const CONCURRENT_REQUESTS = 3;
const BODY = Buffer.alloc(50_000, 'umbel');

let overlay, driver, site;
const tabs = [];

before(async () => {
  overlay = await testnet();
  site = await serve((request, response) => response.end(BODY));
  driver = await launch('chrome');
  for (let number = 0; number < TABS; number += 1) tabs.push(await volunteer());
}, { timeout: 600000 });

after(async () => {
  await driver?.close();
  site?.stop();
  await overlay?.stop();
});

// A reachable volunteer in a tab with a separate browser profile.
async function volunteer() {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
  await page.waitForSelector('#switch:not([disabled])');
  await page.click('#switch');
  const tab = { context, page };
  await waitForReachable(tab);
  return tab;
}

const waitForReachable = ({ page }) => page.waitForSelector('#power[data-phase="reachable"]', { timeout: 30000 });

// The total of forwarded bytes that a tab shows.
const forwardedTotal = ({ page }) => page.$eval('#total', (total) => total.innerText);

// Whether a request over a separate circuit returns the whole body.
const requestSucceeds = (number) =>
  new Promise((resolve) => {
    const proxy = `socks5h://tab${number}:x@${overlay.socks}`;
    execFile('curl', ['--silent', '--show-error', '--max-time', '30', '--proxy', proxy, `${site.url}/`], { encoding: 'buffer' },
      (error, bytes) => resolve(!error && bytes.equals(BODY)));
  });

describe('ten tabs as volunteers', () => {
  test('at least 99 % of requests succeed at the first try while tabs are closed, reloaded, hidden and cut off', { timeout: 300000 }, async () => {
    const events = [
      () => tabs[0].context.close(),
      () => tabs[1].page.reload(),
      // Another page of the same window hides the tab.
      async () => (await tabs[2].context.newPage()).bringToFront(),
      () => tabs[3].page.setOfflineMode(true),
      () => tabs[4].context.close(),
      () => tabs[3].page.setOfflineMode(false),
    ];
    let begun = 0;
    let succeeded = 0;
    const worker = async () => {
      while (begun < REQUESTS) {
        const number = begun++;
        const event = number % 60 === 59 ? events[(number - 59) / 60] : undefined;
        const [whole] = await Promise.all([requestSucceeds(number), event?.()]);
        succeeded += whole ? 1 : 0;
      }
    };
    await Promise.all(Array.from({ length: CONCURRENT_REQUESTS }, worker));
    console.log(`${succeeded} of ${REQUESTS} requests succeeded at the first try`);
    assert(succeeded >= REQUESTS * 0.99, `${succeeded} of ${REQUESTS}`);
  });

  test('the remaining tabs are still relays, and some have forwarded cells', { timeout: 120000 }, async () => {
    const remaining = [1, 2, 3, 5, 6, 7, 8, 9].map((number) => tabs[number]);
    await Promise.all(remaining.map(waitForReachable));
    const amounts = await Promise.all(remaining.map(forwardedTotal));
    // A tab forwards cells only if the client's guard is one of its gateways. Each tab has three of the five relays as gateways.
    assert(amounts.some((amount) => !/^0 /.test(amount)), amounts.join(', '));
  });

  test('a tab searches over these volunteers', { timeout: 120000 }, async () => {
    const context = await driver.createBrowserContext();
    const page = await context.newPage();
    await page.goto(`${overlay.directory}/search`, { waitUntil: 'load' });
    const searches = await page.evaluate(async () => {
      const { connect } = await import('/umbel.js');
      const umbel = await connect({ network: '/umbel.json' });
      const found = [];
      const end = performance.now() + 60000;
      // The first circuits may be built before the volunteer list arrives.
      while (!found.some(({ path }) => path[1].volunteer) && performance.now() < end) {
        found.push(await umbel.search({ terms: 'message' }));
      }
      umbel.close();
      return found.map(({ results, path }) => ({ results: results.length, volunteers: path.map((hop) => hop.volunteer) }));
    });
    assert(searches.every(({ results, volunteers }) => results > 0 && volunteers.length === 3), JSON.stringify(searches));
    assert(searches.at(-1).volunteers[1], `none of ${searches.length} searches used a tab`);
    assert(searches.every(({ volunteers }) => !volunteers[0] && !volunteers[2]));
    await context.close();
  });
});
