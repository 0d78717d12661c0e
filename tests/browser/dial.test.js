// Dials a relay's transport from stock browsers. A dial uses only the relay's descriptor.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { BROWSERS, launch } from './browsers.js';
import { line } from './line.js';
import { listen } from './listener.js';
import { install } from './page.js';

const withTimeout = { timeout: 60000 };

for (const browser of Object.keys(BROWSERS)) {
  describe(browser, () => {
    let relay, driver, page;

    before(async () => {
      relay = await listen();
      driver = await launch(browser);
      page = await driver.newPage();
      await page.evaluate(install);
    }, { timeout: 300000 });

    after(async () => {
      await driver?.close();
      await relay?.stop();
    });

    test('opens twenty links simultaneously and gets every byte back over every lane', withTimeout, async () => {
      const dials = await page.evaluate(async (descriptor) => {
        const dials = await Promise.all(Array.from({ length: 20 }, () => umbel.dial(descriptor)));
        const sizes = [1, 1024, 17408, 65536];
        const echoes = dials.flatMap(({ channels }) => (channels ?? []).map((channel) => umbel.echo(channel, sizes)));
        await Promise.all(echoes);
        globalThis.peers = dials.map(({ peer }) => peer);
        return dials.map(({ error, milliseconds }) => ({ error, milliseconds }));
      }, relay.descriptor);
      assert.deepEqual(dials.filter(({ error }) => error), []);
      const times = dials.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b);
      console.log(`${browser}: 20 simultaneous dials, ${times[0].toFixed(0)} to ${times[19].toFixed(0)} ms`);
      assert.deepEqual(await relay.counts(), { links: 20, halfOpen: 0 });
    });

    test('leaves no links at the relay after the browser has closed them', withTimeout, async () => {
      await page.evaluate(() => globalThis.peers.forEach((peer) => peer.close()));
      const started = Date.now();
      while ((await relay.counts()).links > 0) {
        assert(Date.now() - started < 20000, 'links left');
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    });

    test('opens lanes that are negotiated in band', withTimeout, async () => {
      const result = await page.evaluate(async (descriptor) => {
        const { peer, channels, error } = await umbel.dial(descriptor, { negotiated: false, lanes: 2 });
        if (error) return error;
        await Promise.all(channels.map((channel) => umbel.echo(channel, [5000])));
        const ids = channels.map(({ id }) => id).sort();
        peer.close();
        return ids;
      }, relay.descriptor);
      assert.deepEqual(result, [0, 2]);
    });

    test('gets every byte back over an emulated line with 10 ms of delay and 1 % loss', withTimeout, async () => {
      const lossy = await line(relay.descriptor, { loss: 0.01, delay: 10 });
      const result = await page.evaluate(async (descriptor) => {
        const { peer, channels, error } = await umbel.dial(descriptor);
        if (error) return { error };
        const started = performance.now();
        const sizes = Array.from({ length: 40 }, (_, number) => 10_000 + 97 * number);
        await Promise.all(channels.map((channel) => umbel.echo(channel, sizes)));
        peer.close();
        return { seconds: (performance.now() - started) / 1000 };
      }, lossy.descriptor);
      await lossy.stop();
      assert.equal(result.error, undefined);
      assert(lossy.counts.dropped > 10, 'the line drops datagrams');
      console.log(`${browser}: 1.9 MB over four lanes and back in ${result.seconds.toFixed(1)} s, ` +
        `${lossy.counts.dropped} of ${lossy.counts.forwarded + lossy.counts.dropped} datagrams lost`);
    });

    test('uses AES-128-GCM with a relay that accepts it, and otherwise ChaCha20-Poly1305', withTimeout, async () => {
      const other = await listen(['--chacha20']);
      const suites = await page.evaluate(async (descriptors) => {
        const suites = [];
        for (const descriptor of descriptors) {
          const { peer, channels, error } = await umbel.dial(descriptor);
          if (error) throw new Error(error);
          await umbel.echo(channels[0], [1, 17408, 65536]);
          const report = [...(await peer.getStats()).values()];
          suites.push(report.find(({ type }) => type === 'transport')?.dtlsCipher);
          peer.close();
        }
        return suites;
      }, [relay.descriptor, other.descriptor]);
      await other.stop();
      assert.match(suites[0], /AES_128_GCM/);
      assert.match(suites[1], /CHACHA20_POLY1305/);
    });

    test('opens one link quickly', withTimeout, async () => {
      const times = await page.evaluate(async (descriptor) => {
        const times = [];
        for (let n = 0; n < 10; n++) {
          const { peer, error, milliseconds } = await umbel.dial(descriptor);
          if (error) throw new Error(error);
          peer.close();
          times.push(milliseconds);
        }
        return times.sort((a, b) => a - b);
      }, relay.descriptor);
      console.log(`${browser}: one dial, p50 ${times[5].toFixed(1)} ms, ${times[0].toFixed(1)} to ${times[9].toFixed(1)}`);
      assert(times[5] < 2000);
    });

    test('opens no link with a wrong fingerprint, and fails before the time limit', withTimeout, async () => {
      const fingerprint = relay.descriptor.fingerprint.replace(/^../, (byte) => (byte === '00' ? '01' : '00'));
      const wrong = { ...relay.descriptor, fingerprint };
      const result = await page.evaluate((descriptor) => umbel.dial(descriptor, { timeLimit: 15000 }), wrong);
      assert.equal(result.error, 'failed');
      assert(result.milliseconds < 5000, `after ${result.milliseconds} ms`);
    });

    test('opens no link with a wrong password', withTimeout, async () => {
      const wrong = { ...relay.descriptor, password: 'x'.repeat(24) };
      const result = await page.evaluate((descriptor) => umbel.dial(descriptor, { timeLimit: 3000 }), wrong);
      assert.equal(typeof result.error, 'string');
      assert.equal((await relay.counts()).halfOpen, 0);
    });
  });
}
