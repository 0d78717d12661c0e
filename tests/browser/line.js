// An emulated line of a relay: a UDP forwarder that delays every datagram and drops some, in both directions.
import { createSocket } from 'node:dgram';

import { nonLoopbackAddress } from './addresses.js';

// Reproducible numbers from 0 to 1 (xorshift32).
function* sequence(seed) {
  for (let state = seed; ; ) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    yield (state >>> 0) / 2 ** 32;
  }
}

// Forwards to the relay with the descriptor `relay`. Returns the descriptor of the forwarder, for dials. `loss` is a fraction of the
// datagrams, `delay` the one-way delay in milliseconds.
export async function line(relay, { loss, delay, seed = 1 }) {
  const address = nonLoopbackAddress() ?? '127.0.0.1';
  const random = sequence(seed);
  const [{ ip, port }] = relay.addresses;
  const counts = { forwarded: 0, dropped: 0 };
  // A socket towards the relay for each socket of the browser.
  const relaySockets = new Map();
  let stopped = false;
  const forward = (socket, datagram, toPort, toAddress) => {
    if (random.next().value < loss) {
      counts.dropped += 1;
      return;
    }
    counts.forwarded += 1;
    setTimeout(() => stopped || socket.send(datagram, toPort, toAddress), delay);
  };
  const bindSocket = async () => {
    const socket = createSocket({ type: 'udp4', recvBufferSize: 1 << 22 });
    await new Promise((resolve) => socket.bind(0, address, resolve));
    return socket;
  };
  const front = await bindSocket();
  front.on('message', async (datagram, from) => {
    const key = `${from.address}:${from.port}`;
    if (!relaySockets.has(key)) {
      relaySockets.set(key, bindSocket().then((socket) => {
        socket.on('message', (answer) => forward(front, answer, from.port, from.address));
        return socket;
      }));
    }
    forward(await relaySockets.get(key), datagram, port, ip);
  });
  return {
    descriptor: { ...relay, addresses: [{ ip: address, port: front.address().port }] },
    counts,
    stop: async () => {
      stopped = true;
      front.close();
      for (const socket of relaySockets.values()) (await socket).close();
    },
  };
}
