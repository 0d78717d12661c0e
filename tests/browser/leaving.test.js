// What becomes of others' circuits when a tab that relays is turned off, closed, or left and come back to.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { elsewhere, unreachable } from './addresses.js';
import { BROWSERS } from './browsers.js';
import { client, fetched, fixture, volunteer } from './through.js';

const deadline = { timeout: 120000 };
// A link that has fallen silent is given up after three seconds; who says that it goes is gone before.
const SILENCE = 3;
const decode = (base32) => {
  const bits = [...base32.toLowerCase()].map((letter) => 'abcdefghijklmnopqrstuvwxyz234567'.indexOf(letter).toString(2).padStart(5, '0')).join('');
  return Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
};

// Answers `/one` at once, and anything else without end.
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
  const address = browser === 'firefox' ? elsewhere() : undefined;

  describe(`a tab of ${browser} that is left`, { skip: unreachable(browser, address) }, () => {
    const all = fixture(browser, { address, handler });

    const isListed = async ({ identity }) => {
      const list = await fetch(`${all.overlay.directory}/v1/volunteers`);
      return list.ok && Buffer.from(await list.arrayBuffer()).includes(decode(identity));
    };

    async function until(holds, what, limit = 20000) {
      const began = performance.now();
      while (!(await holds())) {
        assert(performance.now() - began < limit, what);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      return (performance.now() - began) / 1000;
    }

    // What becomes of a transfer without end, by a client whose circuits all go through `tab`, once the tab goes by `leave`.
    async function left(tab, leave) {
      const through = await client(all.overlay, tab.identity);
      all.clients.push(through);
      const { bytesTotal } = await tab.state();
      const began = fetched(through.socks, `${all.origin.at}/endless`, ['--output', '/dev/null']);
      await tab.until((state, least) => state.bytesTotal >= least, bytesTotal + 1e6);
      const from = performance.now();
      const going = leave();
      const { whole } = await began;
      const ended = (performance.now() - from) / 1000;
      assert.equal(whole, false, 'an error, and not as if it were all');
      // Whoever isn't held to it has other ways, at the first try.
      for (const name of ['a', 'b', 'c', 'd']) {
        const { bytes } = await fetched(`socks5h://${leave.name}-${name}:x@${all.overlay.socks}`, `${all.origin.at}/one`, ['--max-time', '10']);
        assert.equal(bytes.toString(), 'one');
      }
      await going;
      const unlisted = await until(async () => !(await isListed(tab)), 'the list no longer names it');
      console.log(`${browser}, ${leave.name}: the transfer ended after ${ended.toFixed(2)} s, off the list ${unlisted.toFixed(2)} s later`);
      return ended;
    }

    test('closed: a transfer through it ends at once with an error, and others have other ways', deadline, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      const ended = await left(tab, function closed() {
        return tab.page.close({ runBeforeUnload: false });
      });
      assert(ended < SILENCE, `after ${ended} s`);
      await tab.close();
    });

    test('turned off: it is off at once, what it carried ends within moments, and the list no longer names it', deadline, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      await left(tab, async function off() {
        const [seen, whole] = await tab.page.evaluate(async () => {
          const stopped = globalThis.tab.stop();
          const seen = globalThis.tab.state;
          await stopped;
          return [seen, globalThis.tab.state];
        });
        assert.deepEqual([seen.on, seen.phase], [false, 'off'], 'the switch acts at once');
        assert(whole.bytesTotal >= seen.bytesTotal);
      });
      await tab.close();
    });

    test('turned off while nothing crosses it: gone from the list within moments', deadline, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      await until(() => isListed(tab), 'the tab is listed');
      await tab.page.evaluate(() => globalThis.tab.stop());
      const unlisted = await until(async () => !(await isListed(tab)), 'the list no longer names it');
      console.log(`${browser}, at rest: off the list after ${unlisted.toFixed(2)} s`);
      await tab.close();
    });

    test('kept by the browser and come back to: it goes on as the same relay', deadline, async () => {
      const tab = await volunteer(all.driver, all.overlay);
      // As a browser does that keeps a page; whether one keeps this is its own affair.
      await tab.page.evaluate(() => dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })));
      assert.equal((await tab.state()).gateways, 0);
      await until(async () => !(await isListed(tab)), 'it is gone meanwhile');
      await tab.page.evaluate(() => dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })));
      await tab.until((state) => state.phase === 'reachable');
      assert.equal((await tab.state()).identity, tab.identity);
      await until(() => isListed(tab), 'it is listed again');
      await tab.close();
    });
  });
}
