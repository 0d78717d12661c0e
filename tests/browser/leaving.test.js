// Circuits through a volunteer's tab that is closed, turned off, or cached by the browser and restored.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { fetchByCurl, fixture, readyClient, volunteer } from './through.js';

const withTimeout = { timeout: 120000 };
// Seconds of silence after which a link is closed. A link that the peer closes ends earlier.
const SILENCE_TIMEOUT_S = 3;
const decode = (base32) => {
  const bits = [...base32.toLowerCase()].map((letter) => 'abcdefghijklmnopqrstuvwxyz234567'.indexOf(letter).toString(2).padStart(5, '0')).join('');
  return Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
};

// Answers `/one` immediately, and other requests with an endless body.
function handler(request, response) {
  if (request.url === '/one') return response.end('one');
  const piece = Buffer.alloc(65536, 'umbel');
  const write = () => {
    while (!response.destroyed && response.write(piece));
  };
  response.on('drain', write);
  return write();
}

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? nonLoopbackAddress() : undefined;

  describe(`a tab of ${browser} that ends`, { skip: skipReason(browser, address) }, () => {
    const all = fixture(browser, { address, handler });

    const isListed = async ({ identity }) => {
      const list = await fetch(`${all.overlay.directory}/v1/volunteers`);
      return list.ok && Buffer.from(await list.arrayBuffer()).includes(decode(identity));
    };

    async function until(holds, what, limit = 20000) {
      const start = performance.now();
      while (!(await holds())) {
        assert(performance.now() - start < limit, what);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      return (performance.now() - start) / 1000;
    }

    // Starts an endless transfer through `tab`, calls `leave`, and asserts that the transfer fails and that other circuits work. Returns
    // the seconds from `leave` to the end of the transfer.
    async function transferDuring(tab, leave) {
      const client = await readyClient(all.overlay, tab.identity);
      all.clients.push(client);
      const { bytesTotal } = await tab.state();
      const transfer = fetchByCurl(client.socks, `${all.site.url}/endless`, ['--output', '/dev/null']);
      await tab.until((state, minimum) => state.bytesTotal >= minimum, bytesTotal + 1e6);
      const leftAt = performance.now();
      const leaving = leave();
      const { whole } = await transfer;
      const seconds = (performance.now() - leftAt) / 1000;
      assert.equal(whole, false, 'the transfer fails, and does not look complete');
      // A client without a fixed middle relay uses other paths, at the first try.
      for (const name of ['a', 'b', 'c', 'd']) {
        const { bytes } = await fetchByCurl(`socks5h://${leave.name}-${name}:x@${all.overlay.socks}`, `${all.site.url}/one`, ['--max-time', '10']);
        assert.equal(bytes.toString(), 'one');
      }
      await leaving;
      const unlisted = await until(async () => !(await isListed(tab)), 'the list no longer contains the tab');
      console.log(`${browser}, ${leave.name}: the transfer ended after ${seconds.toFixed(2)} s, off the list ${unlisted.toFixed(2)} s later`);
      return seconds;
    }

    test('closed: a transfer through it fails immediately, and other clients use other paths', withTimeout, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      const seconds = await transferDuring(tab, function closed() {
        return tab.page.close({ runBeforeUnload: false });
      });
      assert(seconds < SILENCE_TIMEOUT_S, `after ${seconds} s`);
      await tab.close();
    });

    test('turned off: its state changes immediately, its transfers fail, and the list no longer contains it', withTimeout, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      await transferDuring(tab, async function off() {
        const [atStop, afterStop] = await tab.page.evaluate(async () => {
          const stopped = globalThis.tab.stop();
          const atStop = globalThis.tab.state;
          await stopped;
          return [atStop, globalThis.tab.state];
        });
        assert.deepEqual([atStop.on, atStop.phase], [false, 'off'], 'the state changes immediately');
        assert(afterStop.bytesTotal >= atStop.bytesTotal);
      });
      await tab.close();
    });

    test('turned off while idle: the list no longer contains it', withTimeout, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      await until(() => isListed(tab), 'the tab is listed');
      await tab.page.evaluate(() => globalThis.tab.stop());
      const unlisted = await until(async () => !(await isListed(tab)), 'the list no longer contains the tab');
      console.log(`${browser}, idle: off the list after ${unlisted.toFixed(2)} s`);
      await tab.close();
    });

    test('cached by the browser and restored: it continues as the same relay', withTimeout, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      // The events of a browser's back/forward cache. A browser may decide not to cache the page, so they are simulated.
      await tab.page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
      assert.equal((await tab.state()).gateways, 0);
      await until(async () => !(await isListed(tab)), 'the list does not contain the tab while it is cached');
      await tab.page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
      await tab.until((state) => state.phase === 'reachable');
      assert.equal((await tab.state()).identity, tab.identity);
      await until(() => isListed(tab), 'the list contains the tab again');
      await tab.close();
    });
  });
}
