// Runs `umbel testnet`: a complete overlay on this machine, with a search engine for its exits and a client with a search page.
import { createInterface } from 'node:readline';

import { umbel } from './program.js';

// Starts a testnet on free ports, with relays at `address`. Returns the addresses of the client's search page and SOCKS5 port, and of
// the directory.
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
    // The directory also serves the pages for browsers.
    directory: /directory (http:\S+)/.exec(ready)[1],
    stop: () => {
      child.kill('SIGTERM');
      return ended;
    },
  };
}
