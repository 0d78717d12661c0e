// The WebAssembly core: loaded once, whoever asks first.
import init from '../../wasm/umbel.js';
import { UmbelError } from './failure';

let loading: Promise<unknown> | undefined;

export async function load(): Promise<void> {
  try {
    await (loading ??= init());
  } catch {
    loading = undefined;
    throw new UmbelError('network', 'The program of this page could not be loaded whole; load the page anew.');
  }
}

export function requireWebRtc(): void {
  if (typeof RTCPeerConnection === 'function') return;
  throw new UmbelError(
    'no-webrtc',
    'This browser has no WebRTC, or it is turned off; without it the page can reach no relay. Nothing has been sent.',
  );
}
