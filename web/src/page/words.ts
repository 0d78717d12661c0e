// Texts of quantities and failures, for users who are not familiar with relays.
import type { UmbelError } from '../umbel';

const UNITS = ['bytes', 'kB', 'MB', 'GB', 'TB'] as const;

// A number of bytes as text: 0 bytes, 950 bytes, 12 kB, 3.4 MB.
export function bytes(count: number): string {
  let value = Number.isFinite(count) && count > 0 ? count : 0;
  let unit = 0;
  // 999.5 would be rounded to 1000.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? value.toFixed(1).replace(/\.0$/, '') : String(Math.round(value));
  return `${digits} ${digits === '1' && unit === 0 ? 'byte' : UNITS[unit]}`;
}

export const rate = (perSecond: number): string => `${bytes(perSecond)}/s`;

// A duration as text: 1 ms, 420 ms, 1.3 s.
export function time(milliseconds: number): string {
  const whole = Math.max(1, Math.round(milliseconds));
  return whole < 1000 ? `${whole} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

// A short form of a relay's identity, for display.
export const relayName = (identity: string): string => identity.slice(0, 8);

export const capital = (text: string): string => text.replace(/^./u, (first) => first.toUpperCase());

// The text as a sentence: a capital first, a full stop last.
export const sentence = (text: string): string => (text === '' || /[.!?]$/u.test(text) ? capital(text) : `${capital(text)}.`);

export interface FailureText {
  title: string;
  words: string;
}

type Kind = UmbelError['kind'];

// Title and advice for each kind of failure.
const FAILURES: Record<Kind, FailureText> = {
  'no-webrtc': {
    title: 'This browser can’t reach the relays',
    words:
      'Umbel needs WebRTC data channels, which this browser lacks or disables, by a setting or an extension. Allow them ' +
      'for this page, or use another browser. Nothing was sent.',
  },
  clock: {
    title: 'This computer’s clock is wrong',
    words:
      'The list of relays is signed with its date, which is not valid at the time of this clock. Correct the date, time and ' +
      'time zone, then reload this page. Nothing was sent.',
  },
  consensus: {
    title: 'The list of relays is not valid',
    words:
      'The directory’s list is not signed by the authorities, or is out of date. It is not used, and nothing was sent. If this ' +
      'persists, inform the operator of this page.',
  },
  network: {
    title: 'The network can’t be reached',
    words:
      'The directory or the relays don’t answer. You may be offline, or this network may block WebRTC. Try again in a moment, ' +
      'or from another network.',
  },
  storage: {
    title: 'This browser stores nothing for this page',
    words:
      'Its storage is full or denied, and a relay with a new key for each visit would disclose more about you. Allow this page ' +
      'to store data (a private window may not), or free some storage, then try again.',
  },
  exit: {
    title: 'The exit did not answer',
    words: 'The exit, the last relay of the path, closed the stream or failed. Try again; another exit may succeed.',
  },
  engine: {
    title: 'The search engine failed',
    words: 'It blocked the exit, or its answer is invalid. Try again later, or choose another engine.',
  },
  target: {
    title: 'The site did not answer',
    words: 'It can’t be reached, closed the stream early, or its answer is invalid. Try again later.',
  },
  certificate: {
    title: 'The site’s certificate is not valid',
    words: 'Another party may intercept the stream, so no part of the request was sent.',
  },
  refused: {
    title: 'The request was refused',
    words: 'No exit performs it, or a limit is reached. Another exit may accept it later.',
  },
  closed: {
    title: 'The client has closed',
    words: 'The channel to the first relay has closed. Try again to open a new one.',
  },
  'bad-input': {
    title: 'The request is invalid',
    words: 'Nothing was sent.',
  },
};

// Kinds whose own message adds nothing to the texts above.
const FULLY_EXPLAINED: readonly Kind[] = ['no-webrtc', 'clock', 'storage'];

// The texts for a failure. `detail` is the failure's own message, or empty if the message adds nothing.
export function explain(error: unknown): FailureText & { detail: string } {
  const kind = (error as Partial<UmbelError> | undefined)?.kind;
  const detail = error instanceof Error && !(FULLY_EXPLAINED as readonly unknown[]).includes(kind) ? sentence(error.message) : '';
  const known = kind !== undefined && Object.hasOwn(FAILURES, kind) ? FAILURES[kind] : undefined;
  return { ...(known ?? { title: 'This page has failed', words: 'Reload it to try again. Nothing was sent unencrypted.' }), detail };
}
