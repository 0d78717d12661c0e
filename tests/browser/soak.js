// Holds many circuits open through one tab for minutes and prints what memory the tab takes: `npm run soak`, or `node soak.js
// CIRCUITS MINUTES`. Not a test, for it takes as long as it is told to. For Linux, since it reads what the page's process has.
import { readFileSync } from 'node:fs';

import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { client, fetched, serve, volunteer } from './through.js';

const [circuits, minutes] = [Number(process.argv[2] ?? 50), Number(process.argv[3] ?? 10)];
/** Bytes a second of each circuit. */
const RATE = 40_000;
const MIB = 2 ** 20;

const overlay = await testnet();
const origin = await serve();
const driver = await launch('chrome');
const tab = await volunteer(driver, overlay);
const through = await client(overlay, tab.identity);

// Under a name of its own, so over a circuit of its own: one transfer after the other, of which none lives longer than a circuit takes streams.
let [whole, parts, over] = [0, 0, false];
const carry = async (number) => {
  const proxy = through.socks.replace('//', `//circuit${number}:x@`);
  while (!over) {
    const { bytes } = await fetched(proxy, `${origin.at}/body`, ['--limit-rate', String(RATE), '--max-time', '20']);
    if (bytes.length >= RATE * 10) whole += 1;
    else parts += 1;
  }
};

// The page's process is the renderer that has done most.
const { processInfo } = await (await driver.target().createCDPSession()).send('SystemInfo.getProcessInfo');
const renderers = processInfo.filter(({ type }) => type === 'renderer').sort((one, other) => other.cpuTime - one.cpuTime);
const session = await tab.page.createCDPSession();

// What the process has for itself, and what of it the page's script and its buffers take, in MiB.
async function memory() {
  await session.send('HeapProfiler.collectGarbage');
  const { usedSize, backingStorageSize } = await session.send('Runtime.getHeapUsage');
  const rollup = readFileSync(`/proc/${renderers[0].id}/smaps_rollup`, 'utf8');
  const kib = (name) => Number(new RegExp(`${name}: +(\\d+)`).exec(rollup)[1]);
  return { own: (kib('Private_Clean') + kib('Private_Dirty')) / 1024, script: usedSize / MIB, buffers: backingStorageSize / MIB };
}

const carriers = Array.from({ length: circuits }, (_, number) => carry(number));
let first;
for (let minute = 0; minute <= minutes; minute += 0.5) {
  const { own, script, buffers } = await memory();
  const state = await tab.state();
  // It is held to what it takes once all circuits have been there for a while.
  if (minute === 1) first = own;
  const grown = first === undefined ? '' : `, ${(100 * (own / first - 1)).toFixed(1)} % more than after a minute`;
  console.log(`${minute.toFixed(1)} min: ${state.circuits} circuits, ${(state.bytesTotal / MIB).toFixed(0)} MiB passed on; ` +
    `memory ${own.toFixed(1)} MiB, of it script ${script.toFixed(1)} and buffers ${buffers.toFixed(1)}${grown}`);
  if (minute < minutes) await new Promise((resolve) => setTimeout(resolve, 30_000));
}
over = true;
await Promise.all(carriers);
console.log(`${whole} transfers went on to their end, ${parts} broke off`);
await driver.close();
await through.stop();
origin.stop();
await overlay.stop();
