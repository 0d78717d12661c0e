// The time from a click on a volunteer's switch to the first circuit through the volunteer, for a native client that waits for it.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { fetchByCurl, fixture, startClient } from './through.js';

// Number of measurements for each browser.
const RUNS = Number(process.env.UMBEL_RUNS ?? 1);

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? nonLoopbackAddress() : undefined;

  describe(`the switch of ${browser}`, { skip: skipReason(browser, address) }, () => {
    let ended = false;
    after(() => (ended = true));
    const all = fixture(browser, { address });

    const phase = (page, phase) => page.waitForSelector(`#power[data-phase="${phase}"]`, { timeout: 30000 });

    // Records in the page the first time of each state, in milliseconds from the click.
    const watch = (page) => page.evaluate(() => {
      globalThis.first = {};
      const power = document.querySelector('#power');
      const update = () => {
        const record = (state) => (globalThis.first[state] ??= Date.now() - globalThis.clicked);
        if (power.dataset.phase === 'off') return;
        record(power.dataset.phase);
        if (document.querySelector('#circuits').textContent !== '0') record('circuit');
        if (!/^0 /.test(document.querySelector('#total').textContent)) record('cell');
      };
      new MutationObserver(update).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
      document.querySelector('#switch').addEventListener('click', () => (globalThis.clicked = Date.now()), { capture: true });
    });

    test('makes the tab a relay, which carries the first requested circuit', { timeout: 240000 * RUNS }, async () => {
      for (let run = 1; run <= RUNS; run += 1) {
        const context = await all.driver.createBrowserContext();
        const page = await context.newPage();
        await page.goto(`${all.overlay.directory}/volunteer`, { waitUntil: 'load' });
        // Runs the volunteer once to get its identity, which the client needs at its start.
        const identity = await page.evaluate(async () => {
          const { volunteer } = await import('/umbel.js');
          let found;
          const identity = new Promise((resolve) => (found = resolve));
          const tab = await volunteer({ network: '/umbel.json', onstate: (state) => state.identity && found(state.identity) });
          await identity;
          await tab.stop();
          return identity;
        });
        await page.reload({ waitUntil: 'load' });
        await phase(page, 'off');
        const client = await startClient(all.overlay, [`--middle=${identity}`]);
        all.clients.push(client);
        // Requests a page through the volunteer from now on, until a request succeeds.
        const firstAnswer = (async () => {
          const end = performance.now() + 120000;
          while (!(await fetchByCurl(client.socks, `${all.site.url}/`, ['--max-time', '20'])).whole) {
            assert(!ended && performance.now() < end, 'no request through the tab succeeds');
          }
          return Date.now();
        })();
        // If the test fails earlier, this promise must not be an unhandled rejection.
        firstAnswer.catch(() => undefined);
        await watch(page);
        await page.click('#switch');
        await phase(page, 'reachable');
        await page.waitForFunction(() => globalThis.first.circuit !== undefined && globalThis.first.cell !== undefined, { timeout: 60000, polling: 50 });
        const answered = await firstAnswer;
        const first = await page.evaluate((answered) => ({ ...globalThis.first, answered: answered - globalThis.clicked }), answered);
        const seconds = (state) => (first[state] / 1000).toFixed(2);
        // The page updates its statistics once a second, and the client fetches the volunteer list about as often.
        console.log(`${browser}: after the click reachable ${seconds('reachable')} s, a whole request answered through it ${seconds('answered')} s, ` +
          `a circuit shown ${seconds('circuit')} s, cells shown ${seconds('cell')} s`);
        assert(first.cell > 0);
        await context.close();
        await client.stop();
        all.clients.pop();
      }
    });
  });
}
