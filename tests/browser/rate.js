// Prints the throughput of a tab as the middle relay of a native client's circuit: `npm run rate`, or `node rate.js BROWSER RUNS`. It is
// not a test, because it needs a release build (`UMBEL_PROGRAM`) and an otherwise idle machine.
import { nonLoopbackAddress } from './addresses.js';
import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { readyClient, fetchByCurl, serve, volunteer } from './through.js';

const [browser, runs] = [process.argv[2] ?? 'chrome', Number(process.argv[3] ?? 4)];
const MIB = 2 ** 20;
const body = Buffer.alloc(100 * MIB, 'umbel');

const overlay = await testnet({ relays: 7, address: browser === 'firefox' ? nonLoopbackAddress() : undefined });
const site = await serve((request, response) => response.end(request.url === '/body' ? body : 'one byte or so'));
const driver = await launch(browser);
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
await driver.close();
await client.stop();
site.stop();
await overlay.stop();
