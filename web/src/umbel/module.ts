// Loads the WebAssembly core, once.
import init from '../../wasm/umbel.js';
import { UmbelError } from './failure';

let loading: Promise<unknown> | undefined;

/** Loads the core, unless it is loaded. */
export async function load(): Promise<void> {
  try {
    await (loading ??= init());
  } catch {
    loading = undefined;
    throw new UmbelError('network', 'This page’s program could not be loaded completely; reload the page.');
  }
}

/** Throws if the browser has no WebRTC. */
export function requireWebRtc(): void {
  if (typeof RTCPeerConnection === 'function') return;
  throw new UmbelError(
    'no-webrtc',
    'This browser lacks WebRTC or disables it, so the page can’t reach a relay. Nothing was sent.',
  );
}
