// Runs `listen.rs`: a relay's transport that echoes.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { nonLoopbackAddress } from './addresses.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

// The program built by cargo, or the existing file `UMBEL_LISTENER`.
const built = process.env.UMBEL_LISTENER;
const [program, before] = built ? [built, []] : ['cargo', ['run', '--quiet', '--example', 'listen', '--']];

// Starts the listener with `options`, on a non-loopback IPv4 address if there is one, because Firefox dials no loopback address.
export async function listen(options = []) {
  const address = nonLoopbackAddress() ?? '127.0.0.1';
  const child = spawn(program, [...before, ...options, `${address}:0`], {
    cwd: root,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('the listener ended');
    return JSON.parse(value);
  };
  const descriptor = await next();
  return {
    descriptor,
    // The numbers of the listener's links and half-open links.
    counts: () => {
      child.stdin.write('\n');
      return next();
    },
    stop: () => {
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.stdin.end();
      return ended;
    },
  };
}
