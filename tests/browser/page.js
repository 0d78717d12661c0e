// The code that dials a relay in a page. The tests pass this code to the page as text, so it can't use imports.
export function install() {
  const LANES = 4;

  // The SDP answer, which the dialler makes from the descriptor alone (proto/01-transport.md §6).
  const answer = (relay, mid) =>
    [
      'v=0', 'o=- 1 2 IN IP4 127.0.0.1', 's=-', 't=0 0', 'a=ice-lite', `a=group:BUNDLE ${mid}`,
      'm=application 9 UDP/DTLS/SCTP webrtc-datachannel', 'c=IN IP4 0.0.0.0',
      `a=ice-ufrag:${relay.ufrag}`, `a=ice-pwd:${relay.password}`, `a=fingerprint:sha-256 ${relay.fingerprint}`,
      'a=setup:passive', `a=mid:${mid}`, 'a=sctp-port:5000', 'a=max-message-size:65536',
      // One candidate: with several candidates, ICE may move a link to another address (proto/01-transport.md §6).
      `a=candidate:1 1 udp 2130706431 ${relay.addresses[0].ip} ${relay.addresses[0].port} typ host`,
      'a=end-of-candidates', '',
    ].join('\r\n');

  // Dials a relay; returns the lanes once all are open, or an error.
  async function dial(relay, { negotiated = true, lanes = LANES, timeLimit = 15000 } = {}) {
    const started = performance.now();
    const peer = new RTCPeerConnection({ iceServers: [] });
    const channels = Array.from({ length: lanes }, (_, id) =>
      peer.createDataChannel(`lane ${id}`, negotiated ? { negotiated, id } : {}));
    const opened = channels.map((channel) => {
      channel.binaryType = 'arraybuffer';
      return new Promise((resolve, reject) => {
        channel.onopen = resolve;
        channel.onclose = () => reject(new Error('closed'));
      });
    });
    const failed = new Promise((_, reject) => {
      peer.onconnectionstatechange = () => {
        if (peer.connectionState === 'failed') reject(new Error('failed'));
      };
      setTimeout(() => reject(new Error('no answer')), timeLimit);
    });
    await peer.setLocalDescription(await peer.createOffer());
    const [, mid] = /a=mid:(\S+)/.exec(peer.localDescription.sdp);
    await peer.setRemoteDescription({ type: 'answer', sdp: answer(relay, mid) });
    try {
      await Promise.race([Promise.all(opened), failed]);
      return { peer, channels, milliseconds: performance.now() - started };
    } catch (error) {
      peer.close();
      return { error: error.message, milliseconds: performance.now() - started };
    }
  }

  // Sends messages of these sizes over a lane and checks that the same bytes come back, in order.
  const echo = (channel, sizes) =>
    new Promise((resolve, reject) => {
      const sent = sizes.map((size, n) => new Uint8Array(size).fill(n + 1));
      const expected = sent.flatMap((message) => [...message]);
      let received = 0;
      channel.onmessage = ({ data }) => {
        for (const byte of new Uint8Array(data)) {
          if (byte !== expected[received++]) return reject(new Error(`byte ${received} is wrong`));
        }
        if (received === expected.length) resolve(received);
      };
      setTimeout(() => reject(new Error(`${received} of ${expected.length} bytes came back`)), 20000);
      for (const message of sent) channel.send(message);
    });

  // The bytes a second that arrive over these lanes, or leave over them, in `seconds` after two seconds of warm-up.
  async function rate(channels, { seconds, send }) {
    const wait = (duration) => new Promise((resolve) => setTimeout(resolve, 1000 * duration));
    let bytes = 0;
    let ended = false;
    const message = new Uint8Array(17408);
    for (const channel of channels) {
      channel.onmessage = ({ data }) => { bytes += data.byteLength; };
      if (!send) continue;
      channel.bufferedAmountLowThreshold = 128 << 10;
      const fill = () => {
        while (!ended && channel.bufferedAmount < 512 << 10) {
          channel.send(message);
          bytes += message.length;
        }
      };
      channel.onbufferedamountlow = fill;
      fill();
    }
    const left = () => bytes - (send ? channels.reduce((sum, { bufferedAmount }) => sum + bufferedAmount, 0) : 0);
    await wait(2);
    const [before, started] = [left(), performance.now()];
    await wait(seconds);
    const rate = (left() - before) / (performance.now() - started) * 1000;
    ended = true;
    return rate;
  }

  globalThis.umbel = { dial, echo, rate };
}
