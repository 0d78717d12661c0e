import { describe, expect, test } from 'vitest';

import { bytes, explain, rate, sentence, time } from '../src/page/words';

describe('words', () => {
  test('bytes are shown in common units', () => {
    expect([0, 1, 950, 1000, 1250, 12_340, 999_499, 999_500, 3_440_000, 1e10, -5, Number.NaN].map(bytes)).toEqual([
      '0 bytes', '1 byte', '950 bytes', '1 kB', '1.3 kB', '12 kB', '999 kB', '1 MB', '3.4 MB', '10 GB', '0 bytes', '0 bytes',
    ]);
    expect(rate(1_250_000)).toBe('1.3 MB/s');
  });

  test('times are shown in milliseconds or seconds', () => {
    expect([0, 0.4, 21.4, 999.4, 999.6, 1234].map(time)).toEqual(['1 ms', '1 ms', '21 ms', '999 ms', '1.0 s', '1.2 s']);
  });

  test('a sentence begins with a capital and ends with a punctuation mark', () => {
    expect(['', 'no answer', 'Why?', 'done.'].map(sentence)).toEqual(['', 'No answer.', 'Why?', 'Done.']);
  });

  test('each kind of failure has texts, also an unknown kind', () => {
    const kinds = ['no-webrtc', 'clock', 'consensus', 'network', 'storage', 'exit', 'engine', 'refused', 'closed', 'bad-input'];
    const titles = kinds.map((kind) => explain(Object.assign(new Error('it broke'), { kind })));
    expect(new Set(titles.map(({ title }) => title)).size).toBe(kinds.length);
    // The failure's own message is omitted if it adds nothing.
    expect(titles.filter(({ detail }) => detail === '')).toHaveLength(3);
    expect(titles.filter(({ detail }) => detail === 'It broke.')).toHaveLength(kinds.length - 3);
    for (const odd of [undefined, null, 5, new Error('x'), { kind: 'constructor' }, { kind: '__proto__' }]) {
      expect(explain(odd).title).toBe('This page has failed');
    }
  });
});
