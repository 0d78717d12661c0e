// From the switch to the first circuit: the page of a volunteer, turned on by its real switch, and a native client that waits for it.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';

import { elsewhere, unreachable } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { fetched, fixture, startClient } from './through.js';

// How often each is measured.
const RUNS = Number(process.env.UMBEL_RUNS ?? 1);

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? elsewhere() : undefined;

  describe(`the switch of ${browser}`, { skip: unreachable(browser, address) }, () => {
    let over = false;
    after(() => (over = true));
    const all = fixture(browser, { address });

    const phase = (page, phase) => page.waitForSelector(`#power[data-phase="${phase}"]`, { timeout: 30000 });

    // Notes in the page itself when it first showed what, in milliseconds from the click on.
    const watch = (page) => page.evaluate(() => {
      globalThis.first = {};
      const power = document.querySelector('#power');
      const look = () => {
        const note = (what) => (globalThis.first[what] ??= Date.now() - globalThis.clicked);
        if (power.dataset.phase === 'off') return;
        note(power.dataset.phase);
        if (document.querySelector('#circuits').textContent !== '0') note('circuit');
        if (!/^0 /.test(document.querySelector('#total').textContent)) note('cell');
      };
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
      document.querySelector('#switch').addEventListener('click', () => (globalThis.clicked = Date.now()), { capture: true });
    });

    test('makes a relay of the tab, through which the first circuit goes that is wanted', { timeout: 240000 * RUNS }, async () => {
      for (let run = 1; run <= RUNS; run += 1) {
        const context = await all.driver.createBrowserContext();
        const page = await context.newPage();
        await page.goto(`${all.overlay.directory}/volunteer`, { waitUntil: 'load' });
        // Its identity has to be known before, for the client to wait for just this one; then it is off again.
        const identity = await page.evaluate(async () => {
          const { volunteer } = await import('/umbel.js');
          let known;
          const identity = new Promise((resolve) => (known = resolve));
          const tab = await volunteer({ network: '/umbel.json', onstate: (state) => state.identity && known(state.identity) });
          await identity;
          await tab.stop();
          return identity;
        });
        await page.reload({ waitUntil: 'load' });
        await phase(page, 'off');
        const client = await startClient(all.overlay, [`--middle=${identity}`]);
        all.clients.push(client);
        // Wanted from now on, and asked for again whenever that came to nothing.
        const wanting = (async () => {
          const end = performance.now() + 120000;
          while (!(await fetched(client.socks, `${all.origin.at}/`, ['--max-time', '20'])).whole) {
            assert(!over && performance.now() < end, 'nothing comes through the tab');
          }
          return Date.now();
        })();
        // Whoever fails before has not waited for it.
        wanting.catch(() => undefined);
        await watch(page);
        await page.click('#switch');
        await phase(page, 'reachable');
        await page.waitForFunction(() => globalThis.first.circuit !== undefined && globalThis.first.cell !== undefined, { timeout: 60000, polling: 50 });
        const answered = await wanting;
        const first = await page.evaluate((answered) => ({ ...globalThis.first, answered: answered - globalThis.clicked }), answered);
        const seconds = (what) => (first[what] / 1000).toFixed(2);
        // The page shows its figures once a second; the client reads the list as often and half as often again.
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
