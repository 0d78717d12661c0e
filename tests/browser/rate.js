// Prints the throughput of a tab as the middle relay of a native client's circuit: `npm run rate`, or `node rate.js BROWSER RUNS`. It is
// not a test, because it needs a release build (`UMBEL_PROGRAM`) and an otherwise idle machine.
import { nonLoopbackAddress } from './addresses.js';
import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { client, fetched, serve, volunteer } from './through.js';

const [browser, runs] = [process.argv[2] ?? 'chrome', Number(process.argv[3] ?? 4)];
const MIB = 2 ** 20;
const body = Buffer.alloc(100 * MIB, 'umbel');

const overlay = await testnet({ relays: 7, address: browser === 'firefox' ? nonLoopbackAddress() : undefined });
const origin = await serve((request, response) => response.end(request.url === '/body' ? body : 'one byte or so'));
const driver = await launch(browser);
const tab = await volunteer(driver, overlay);
const through = await client(overlay, tab.identity);
// Builds the circuit before the first run.
await fetched(through.socks, origin.at);
for (let run = 0; run < runs; run += 1) {
  const report = '%{size_download} %{time_starttransfer} %{time_total}';
  const { bytes } = await fetched(through.socks, `${origin.at}/body`, ['--output', '/dev/null', '--write-out', report]);
  const [length, first, total] = bytes.toString().split(' ').map(Number);
  const whole = length === body.length ? '' : `, truncated after ${length} bytes`;
  console.log(`${browser}: ${(length / MIB / (total - first)).toFixed(1)} MiB/s${whole}`);
}
await driver.close();
await through.stop();
origin.stop();
await overlay.stop();
