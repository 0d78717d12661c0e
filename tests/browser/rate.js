// Prints the throughput of a tab as the middle relay of a native client's circuit: `npm run rate`, or
// `node rate.js BROWSER RUNS [DELAY_MS LOSS_PERCENT]`. With a delay and a loss, Chromium is behind such a line, and the throughputs
// between a relay's transport and a page are printed too. It is not a test, because it needs release builds (`UMBEL_PROGRAM`,
// `UMBEL_LISTENER`) and an otherwise idle machine.
import { nonLoopbackAddress } from './addresses.js';
import { launch } from './browsers.js';
import { listen } from './listener.js';
import { ADDRESS, forward, launchBehindLine, runBehindLine } from './namespaces.js';
import { install } from './page.js';
import { testnet } from './testnet.js';
import { readyClient, fetchByCurl, serve, volunteer } from './through.js';

const [browser, runs] = [process.argv[2] ?? 'chrome', Number(process.argv[3] ?? 4)];
const [delay, loss] = [Number(process.argv[4] ?? 0), Number(process.argv[5] ?? 0)];
const behindLine = delay > 0 || loss > 0;
const MIB = 2 ** 20;

// Prints the rates of bulk data between a relay's transport and a page.
async function measureTransport(driver) {
  const page = await driver.newPage();
  await page.evaluate(install);
  for (const [name, option, send] of [['relay to page', '--source', false], ['page to relay', '--sink', true]]) {
    for (let run = 0; run < runs; run += 1) {
      const relay = await listen([option]);
      const rate = await page.evaluate(async (descriptor, send) => {
        const { peer, channels, error } = await umbel.dial(descriptor);
        if (error) throw new Error(error);
        const rate = await umbel.rate(channels, { seconds: 8, send });
        peer.close();
        return rate;
      }, relay.descriptor, send);
      console.log(`${name}: ${(rate / MIB).toFixed(1)} MiB/s`);
      await relay.stop();
    }
  }
  await page.close();
}

// Prints the rates of downloads by a native client through the tab.
async function measureThroughTab(driver, overlay) {
  const body = Buffer.alloc((behindLine ? 60 : 100) * MIB, 'umbel');
  const site = await serve((request, response) => response.end(request.url === '/body' ? body : 'one byte or so'));
  const tab = await volunteer(driver, overlay);
  const client = await readyClient(overlay, tab.identity);
  // Builds the circuit before the first run.
  await fetchByCurl(client.socks, site.url);
  for (let run = 0; run < runs; run += 1) {
    const report = '%{size_download} %{time_starttransfer} %{time_total}';
    const { bytes } = await fetchByCurl(client.socks, `${site.url}/body`, ['--output', '/dev/null', '--write-out', report]);
    const [length, first, total] = bytes.toString().split(' ').map(Number);
    const truncation = length === body.length ? '' : `, truncated after ${length} bytes`;
    console.log(`${browser}: ${(length / MIB / (total - first)).toFixed(1)} MiB/s${truncation}`);
  }
  await client.stop();
  site.stop();
}

async function measure() {
  const address = ADDRESS ?? (browser === 'firefox' ? nonLoopbackAddress() : undefined);
  const overlay = await testnet({ relays: 7, address });
  let stopForwarding, driver;
  try {
    stopForwarding = ADDRESS && await forward(overlay.directory);
    driver = ADDRESS ? await launchBehindLine() : await launch(browser);
    if (ADDRESS) await measureTransport(driver);
    await measureThroughTab(driver, overlay);
  } finally {
    await driver?.close();
    stopForwarding?.();
    await overlay.stop();
  }
}

if (behindLine && browser !== 'chrome') throw new Error('only Chromium can be behind a line');
if (behindLine && !ADDRESS) process.exitCode = await runBehindLine({ delay, loss });
else await measure();
