// Prints what a tab carries as the middle of a native client's circuit: `npm run rate`, or `node rate.js BROWSER RUNS`. Not a test, for
// it needs a release build (`UMBEL_PROGRAM`) and a machine that does nothing else.
import { elsewhere } from './addresses.js';
import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { client, fetched, serve, volunteer } from './through.js';

const [browser, runs] = [process.argv[2] ?? 'chrome', Number(process.argv[3] ?? 4)];
const MIB = 2 ** 20;
const body = Buffer.alloc(100 * MIB, 'umbel');

const overlay = await testnet({ relays: 7, address: browser === 'firefox' ? elsewhere() : undefined });
const origin = await serve((request, response) => response.end(request.url === '/body' ? body : 'one byte or so'));
const driver = await launch(browser);
const tab = await volunteer(driver, overlay);
const through = await client(overlay, tab.identity);
// A circuit stands before the first run.
await fetched(through.socks, origin.at);
for (let run = 0; run < runs; run += 1) {
  const report = '%{size_download} %{time_starttransfer} %{time_total}';
  const { bytes } = await fetched(through.socks, `${origin.at}/body`, ['--output', '/dev/null', '--write-out', report]);
  const [length, first, total] = bytes.toString().split(' ').map(Number);
  const whole = length === body.length ? '' : `, broke off after ${length} bytes`;
  console.log(`${browser}: ${(length / MIB / (total - first)).toFixed(1)} MiB/s${whole}`);
}
await driver.close();
await through.stop();
origin.stop();
await overlay.stop();
