// A line between Chromium and the relays: two network namespaces, joined by xtask/labs/netdelay. Needs root, iproute2 and a C compiler.
import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { launch, program } from './browsers.js';

const SOURCE = fileURLToPath(new URL('../../xtask/labs/netdelay.c', import.meta.url));
// Variables of the script within the namespaces: the browser's namespace, and a folder for files.
const NAMESPACE = 'UMBEL_BROWSER_NAMESPACE';
const FOLDER = 'UMBEL_LINE_FOLDER';
// The address in the namespace of this script, if it runs in one.
export const ADDRESS = process.env[NAMESPACE] ? '10.77.0.1' : undefined;

// Runs this script again in a namespace, behind `delay` milliseconds one way and a loss of `loss` percent to the browser's namespace, both
// ways. Returns its exit status.
export async function runBehindLine({ delay, loss }) {
  const folder = mkdtempSync(join(tmpdir(), 'umbel-line-'));
  const netdelay = join(folder, 'netdelay');
  execFileSync('cc', ['-O2', '-w', '-o', netdelay, SOURCE]);
  const prefix = `tab${process.pid}n`;
  const line = spawn(netdelay, ['--n', '2', '--prefix', prefix, '--delay-ms', `${delay}`, '--loss', `${loss / 100}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => line.once('exit', resolve));
  try {
    const lines = createInterface({ input: line.stdout });
    await new Promise((resolve, reject) => {
      lines.once('line', resolve);
      ended.then(() => reject(new Error('netdelay ended: it needs root and Linux 6.2')));
    });
    const script = spawn('ip', ['netns', 'exec', `${prefix}0`, ...process.argv], {
      stdio: 'inherit',
      env: { ...process.env, [NAMESPACE]: `${prefix}1`, [FOLDER]: folder },
    });
    return await new Promise((resolve) => script.once('exit', resolve));
  } finally {
    line.kill('SIGTERM');
    await ended;
    rmSync(folder, { recursive: true, force: true });
  }
}

// Starts Chromium in its namespace. Its requests to loopback arrive at this namespace's `ADDRESS`.
export function launchBehindLine() {
  const wrapper = join(process.env[FOLDER], 'chromium');
  writeFileSync(wrapper, `#!/bin/sh\nexec ip netns exec ${process.env[NAMESPACE]} ${program('chrome')} "$@"\n`);
  chmodSync(wrapper, 0o700);
  const args = [`--host-resolver-rules=MAP 127.0.0.1 ${ADDRESS}`];
  return launch('chrome', { executablePath: wrapper, pipe: true, args });
}

// Forwards TCP connections to the port of `url` at `ADDRESS` to the same port at loopback. Returns a function that stops it.
export async function forward(url) {
  const port = Number(new URL(url).port);
  const server = createServer((socket) => {
    const target = createConnection(port, '127.0.0.1');
    for (const [from, to] of [[socket, target], [target, socket]]) {
      from.pipe(to);
      from.on('error', () => to.destroy());
    }
  });
  await new Promise((resolve) => server.listen(port, ADDRESS, resolve));
  return () => server.close();
}
