// A tab as a relay for native clients: transfers through it, and its limits.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { LENGTH, digest, fetchByCurl, fixture, readyClient, sha256, volunteer } from './through.js';

const withTimeout = { timeout: 240000 };

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? nonLoopbackAddress() : undefined;

  describe(`a tab of ${browser} as the middle relay`, { skip: skipReason(browser, address) }, () => {
    const all = fixture(browser, { address });

    const openTab = (limits) => volunteer(all.driver, all.overlay, limits);

    async function clientThrough(tab) {
      const started = await readyClient(all.overlay, tab.identity);
      all.clients.push(started);
      return started;
    }

    const get = (client, path, ...options) => fetchByCurl(client.socks, all.site.url + path, options);

    test('forwards 20 MB unchanged and counts them', withTimeout, async () => {
      const tab = await openTab();
      const client = await clientThrough(tab);
      const { whole, bytes, seconds } = await get(client, '/body');
      assert(whole);
      assert.equal(sha256(bytes), digest);
      console.log(`through a tab of ${browser}: 20 MB in ${seconds.toFixed(1)} s, ${(LENGTH / 2 ** 20 / seconds).toFixed(1)} MiB/s`);
      await tab.until((state, minimum) => state.bytesTotal >= minimum, LENGTH, 10000);
      // Every transfer needs this tab: when the tab ends, a transfer in flight fails and does not look complete.
      const half = get(client, '/body', '--limit-rate', '2M');
      await tab.until((state, minimum) => state.bytesTotal >= minimum, LENGTH + 1e6, 60000);
      await tab.close();
      assert.equal((await half).whole, false);
    });

    test('forwards no faster than its limit', withTimeout, async () => {
      const RATE = 2_000_000;
      const tab = await openTab({ bytesPerSecond: RATE });
      const client = await clientThrough(tab);
      const { whole, bytes, seconds } = await get(client, '/body');
      assert(whole);
      assert.equal(sha256(bytes), digest);
      // The token bucket may hold the bytes of one second at the start.
      assert(seconds >= LENGTH / RATE - 1, `20 MB in ${seconds} s`);
      await tab.close();
    });

    test('pauses permanently once its total is reached', withTimeout, async () => {
      const tab = await openTab({ bytesTotal: 3_000_000 });
      const client = await clientThrough(tab);
      await get(client, '/body', '--max-time', '60');
      await tab.until((state) => state.phase === 'paused');
      const { why, circuits, gateways } = await tab.state();
      assert.match(why, /amount that you set/);
      assert.deepEqual([circuits, gateways], [0, 0]);
      await tab.close();
    });

    // Only Chromium's driver can disconnect a page from the network.
    test('resumes as the same relay after a loss of the network', { ...withTimeout, skip: browser === 'firefox' }, async () => {
      const tab = await openTab();
      await tab.page.setOfflineMode(true);
      await tab.until((state) => state.phase === 'paused');
      await tab.page.setOfflineMode(false);
      await tab.until((state) => state.phase === 'reachable');
      assert.equal((await tab.state()).identity, tab.identity);
      const client = await clientThrough(tab);
      const { whole, bytes } = await get(client, '/');
      assert(whole);
      assert.equal(bytes.toString(), 'one byte or so');
      await tab.close();
    });
  });
}
