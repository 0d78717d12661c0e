// Runs `listen.rs`: a relay's transport that echoes.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { elsewhere } from './addresses.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

// Starts it on an IPv4 address of this machine, with `options` of its own; Firefox dials no loopback address.
export async function listen(options = []) {
  const address = elsewhere() ?? '127.0.0.1';
  const child = spawn('cargo', ['run', '--quiet', '--example', 'listen', '--', ...options, `${address}:0`], {
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
    // How many links it has, open and half open.
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
