// A tab as a relay of native clients: what crosses it, and what its limits hold.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { elsewhere, unreachable } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { LENGTH, client, digest, fetched, fixture, sha256, volunteer } from './through.js';

const deadline = { timeout: 240000 };

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? elsewhere() : undefined;

  describe(`a tab of ${browser} as the middle relay`, { skip: unreachable(browser, address) }, () => {
    const all = fixture(browser, { address });

    const tabThat = (limits) => volunteer(all.driver, all.overlay, limits);

    async function clientThrough(tab) {
      const made = await client(all.overlay, tab.identity);
      all.clients.push(made);
      return made;
    }

    const get = (through, path, ...options) => fetched(through.socks, all.origin.at + path, options);

    test('carries 20 MB byte for byte, counts them, and it was that tab', deadline, async () => {
      const tab = await tabThat();
      const through = await clientThrough(tab);
      const { whole, bytes, seconds } = await get(through, '/body');
      assert(whole);
      assert.equal(sha256(bytes), digest);
      console.log(`through a tab of ${browser}: 20 MB in ${seconds.toFixed(1)} s, ${(LENGTH / 2 ** 20 / seconds).toFixed(1)} MiB/s`);
      await tab.until((state, least) => state.bytesTotal >= least, LENGTH, 10000);
      // Without it nothing comes, and what was under way ends with an error and not as if it were whole.
      const half = get(through, '/body', '--limit-rate', '2M');
      await tab.until((state, least) => state.bytesTotal >= least, LENGTH + 1e6, 60000);
      await tab.close();
      assert.equal((await half).whole, false);
    });

    test('passes on no more than it was told to', deadline, async () => {
      const RATE = 2_000_000;
      const tab = await tabThat({ bytesPerSecond: RATE });
      const through = await clientThrough(tab);
      const { whole, bytes, seconds } = await get(through, '/body');
      assert(whole);
      assert.equal(sha256(bytes), digest);
      // A second's worth may have been saved up.
      assert(seconds >= LENGTH / RATE - 1, `20 MB in ${seconds} s`);
      await tab.close();
    });

    test('stops for good once the total is reached', deadline, async () => {
      const tab = await tabThat({ bytesTotal: 3_000_000 });
      const through = await clientThrough(tab);
      await get(through, '/body', '--max-time', '60');
      await tab.until((state) => state.phase === 'paused');
      const { why, circuits, gateways } = await tab.state();
      assert.match(why, /amount that you set/);
      assert.deepEqual([circuits, gateways], [0, 0]);
      await tab.close();
    });

    // Only Chromium can be told to take a page's network away.
    test('is there again after its network was gone, as the same relay', { ...deadline, skip: browser === 'firefox' }, async () => {
      const tab = await tabThat();
      await tab.page.setOfflineMode(true);
      await tab.until((state) => state.phase === 'paused');
      await tab.page.setOfflineMode(false);
      await tab.until((state) => state.phase === 'reachable');
      assert.equal((await tab.state()).identity, tab.identity);
      const through = await clientThrough(tab);
      const { whole, bytes } = await get(through, '/');
      assert(whole);
      assert.equal(bytes.toString(), 'one byte or so');
      await tab.close();
    });
  });
}
