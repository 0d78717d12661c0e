// Runs `umbel testnet`: a whole overlay on loopback, its exits' search engine and a client with a search page.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

// Starts one on ports of its own choosing; gives where its client's search page and SOCKS port, and its directory, are.
export async function testnet() {
  const ports = ['--socks=127.0.0.1:0', '--http=127.0.0.1:0', '--page=127.0.0.1:0'];
  const child = spawn('cargo', ['run', '--quiet', '--', 'testnet', '--relays=5', ...ports], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const lines = createInterface({ input: child.stdout });
  const ready = await new Promise((resolve, reject) => {
    lines.on('line', (line) => {
      if (/ ready /.test(line)) resolve(line);
    });
    ended.then(() => reject(new Error('the testnet ended')));
  });
  return {
    page: /search page (http:\S+?)\/(\s|$)/.exec(ready)[1],
    socks: /SOCKS5 (\S+)/.exec(ready)[1],
    // It serves the pages for browsers too.
    directory: /directory (http:\S+)/.exec(ready)[1],
    stop: () => {
      child.kill('SIGTERM');
      return ended;
    },
  };
}
