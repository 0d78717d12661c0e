// How figures and failures are told to people who know nothing of relays.
import type { UmbelError } from '../umbel';

const UNITS = ['bytes', 'kB', 'MB', 'GB', 'TB'] as const;

// 0 bytes, 950 bytes, 12 kB, 3.4 MB
export function bytes(count: number): string {
  let value = Number.isFinite(count) && count > 0 ? count : 0;
  let unit = 0;
  // 999.5 would be written as 1000.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit > 0 && value < 9.95 ? value.toFixed(1).replace(/\.0$/, '') : String(Math.round(value));
  return `${digits} ${digits === '1' && unit === 0 ? 'byte' : UNITS[unit]}`;
}

export const rate = (perSecond: number): string => `${bytes(perSecond)}/s`;

// 1 ms, 420 ms, 1.3 s
export function time(milliseconds: number): string {
  const whole = Math.max(1, Math.round(milliseconds));
  return whole < 1000 ? `${whole} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

// A relay's identity, short enough to be read; the whole of it is for machines.
export const relayName = (identity: string): string => identity.slice(0, 8);

export const capital = (text: string): string => text.replace(/^./u, (first) => first.toUpperCase());

// A sentence that ends as one.
export const sentence = (text: string): string => (text === '' || /[.!?]$/u.test(text) ? capital(text) : `${capital(text)}.`);

export interface Told {
  title: string;
  words: string;
}

type Kind = UmbelError['kind'];

// What each kind of failure is, and what can be done about it.
const FAILURES: Record<Kind, Told> = {
  'no-webrtc': {
    title: 'This browser can’t reach the relays',
    words:
      'Umbel needs WebRTC data channels, and they are missing or turned off here, in the settings or by an extension. Allow them ' +
      'for this page, or use another browser. Nothing was sent.',
  },
  clock: {
    title: 'This computer’s clock is wrong',
    words:
      'The list of relays is signed with the time, and it doesn’t fit this clock. Set date, time and time zone right, then ' +
      'reload this page. Nothing was sent.',
  },
  consensus: {
    title: 'The list of relays can’t be believed',
    words:
      'What the directory gave isn’t signed as it must be, or is out of date. It is not used, and nothing was sent. If it stays so, ' +
      'tell whoever runs this page.',
  },
  network: {
    title: 'The network can’t be reached',
    words:
      'Neither this page’s directory nor a relay answers. Perhaps you are offline, or this network lets no WebRTC through. Try again ' +
      'in a moment, or from another network.',
  },
  storage: {
    title: 'This browser keeps nothing for this page',
    words:
      'Its storage is full or denied, and a relay that changes with each visit would tell more of you. Allow this page to keep data ' +
      '(a private window may not), or make room, then try again.',
  },
  exit: {
    title: 'No answer came back',
    words: 'The exit, the last relay of the path, broke off or couldn’t do it. Try again: another exit may do better.',
  },
  engine: {
    title: 'The search engine gave no answer',
    words: 'It turned the exit away or didn’t answer as it should. Try again in a while, or choose another engine.',
  },
  target: {
    title: 'The site gave no answer',
    words: 'It can’t be reached, broke off, or doesn’t speak as it should. Try again in a while.',
  },
  certificate: {
    title: 'The site can’t prove who it is',
    words: 'Its certificate doesn’t count, so someone may stand between. It was not asked.',
  },
  refused: {
    title: 'That was refused',
    words: 'The exit doesn’t do this. Another exit may, so trying again can help.',
  },
  closed: {
    title: 'The way into the network is gone',
    words: 'The channel to the first relay has closed. Try again to build a new one.',
  },
  'bad-input': {
    title: 'That can’t be asked',
    words: 'Nothing was sent.',
  },
};

// Of these the machine itself says no more than stands above.
const SAID: readonly Kind[] = ['no-webrtc', 'clock', 'storage'];

// A failure in words; what the machine itself said, if it says more, comes after them.
export function explain(error: unknown): Told & { said: string } {
  const kind = (error as Partial<UmbelError> | undefined)?.kind;
  const said = error instanceof Error && !(SAID as readonly unknown[]).includes(kind) ? sentence(error.message) : '';
  const told = kind !== undefined && Object.hasOwn(FAILURES, kind) ? FAILURES[kind] : undefined;
  return { ...(told ?? { title: 'Something in this page went wrong', words: 'Reload it to begin anew. Nothing was sent in the clear.' }), said };
}
