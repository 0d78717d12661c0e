// Runs `umbel testnet`: a whole overlay on this machine, its exits' search engine and a client with a search page.
import { createInterface } from 'node:readline';

import { umbel } from './program.js';

// Starts one on ports of its own choosing, its relays at `address`; gives where its client's search page and SOCKS port, and its
// directory, are.
export async function testnet({ address = '127.0.0.1', relays = 5, options = [] } = {}) {
  const ports = ['--socks=127.0.0.1:0', '--http=127.0.0.1:0', '--page=127.0.0.1:0'];
  const network = [`--relays=${relays}`, `--address=${address}`, ...options];
  const child = umbel(['testnet', ...network, ...ports], ['pipe', 'inherit']);
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
