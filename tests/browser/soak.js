// Holds many circuits open through one tab for minutes and prints the memory of the tab: `npm run soak`, or `node soak.js
// CIRCUITS MINUTES`. It is not a test, because it runs for minutes. It needs Linux, because it reads the memory from /proc.
import { readFileSync } from 'node:fs';

import { launch } from './browsers.js';
import { testnet } from './testnet.js';
import { readyClient, fetchByCurl, serve, volunteer } from './through.js';

const [circuits, minutes] = [Number(process.argv[2] ?? 50), Number(process.argv[3] ?? 10)];
/** Bytes per second of each circuit. */
const RATE = 40_000;
const MIB = 2 ** 20;

const overlay = await testnet();
const site = await serve();
const driver = await launch('chrome');
const tab = await volunteer(driver, overlay);
const client = await readyClient(overlay, tab.identity);

// Repeats transfers under one user name, so that one circuit at a time carries them. Each transfer ends before its circuit retires.
let [whole, truncated, stopped] = [0, 0, false];
const carry = async (number) => {
  const proxy = client.socks.replace('//', `//circuit${number}:x@`);
  while (!stopped) {
    const { bytes } = await fetchByCurl(proxy, `${site.url}/body`, ['--limit-rate', String(RATE), '--max-time', '20']);
    if (bytes.length >= RATE * 10) whole += 1;
    else truncated += 1;
  }
};

// The page's process is the renderer with the most processor time.
const { processInfo } = await (await driver.target().createCDPSession()).send('SystemInfo.getProcessInfo');
const renderers = processInfo.filter(({ type }) => type === 'renderer').sort((one, other) => other.cpuTime - one.cpuTime);
const session = await tab.page.createCDPSession();

// The private memory of the process, and the shares of the page's script and buffers in it, in MiB.
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
  // The reference is the memory after a minute, when all circuits are open.
  if (minute === 1) first = own;
  const grown = first === undefined ? '' : `, ${(100 * (own / first - 1)).toFixed(1)} % more than after a minute`;
  console.log(`${minute.toFixed(1)} min: ${state.circuits} circuits, ${(state.bytesTotal / MIB).toFixed(0)} MiB forwarded; ` +
    `memory ${own.toFixed(1)} MiB, including script ${script.toFixed(1)} and buffers ${buffers.toFixed(1)}${grown}`);
  if (minute < minutes) await new Promise((resolve) => setTimeout(resolve, 30_000));
}
stopped = true;
await Promise.all(carriers);
console.log(`${whole} transfers were complete, ${truncated} truncated`);
await driver.close();
await client.stop();
site.stop();
await overlay.stop();
