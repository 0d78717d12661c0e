import { describe, expect, test } from 'vitest';

import { HEIGHT, MAX_SAMPLES, Samples, WIDTH, draw, roundTop } from '../src/volunteer/graph';
import { DEFAULTS, isSame, read } from '../src/volunteer/settings';
import { movedText, shortOrigins, stateText } from '../src/volunteer/limits';
import { sources } from '../src/volunteer/policy';
import { limitsInShort, stateLines } from '../src/volunteer/texts';
import { chooseEngines, readEngines } from '../src/umbel/engines';
import type { VolunteerState } from '../src/umbel';

describe('settings', () => {
  test('stored settings are read unchanged', () => {
    const searchEngines = Array.from({ length: 32 }, (_, number) => ({ name: `e-${number}`, origins: [`https://e${number}.example`] }));
    const settings = { on: true, limits: { bytesPerSecond: 5, bytesTotal: 6, onlyOnPower: true, searchEngines } };
    expect(read(JSON.stringify(settings))).toEqual(settings);
    expect(read('{"on":false,"limits":{}}')).toEqual({ on: false, limits: {} });
  });

  test('missing or unreadable settings mean off', () => {
    for (const text of [null, '', '{', 'null', '5', '[]', '{"on":true}', '{"on":true,"limits":null}']) expect(read(text)).toEqual(DEFAULTS);
    expect(DEFAULTS.on).toBe(false);
    expect(DEFAULTS.limits.searchEngines).toBeUndefined();
  });

  test('invalid values are omitted', () => {
    const limits = { bytesPerSecond: -1, bytesTotal: 1e400, onlyOnPower: 'yes', onlyUnmetered: 1, searchEngines: [null, 5, 'name', {}] };
    expect(read(JSON.stringify({ on: 1, limits }))).toEqual({ on: false, limits: {} });
    for (const odd of [{ name: '<b>', origins: ['https://e.example'] }, { name: 'e' }, { name: 'e', origins: [] }, { name: 'e', origins: [5] }]) {
      expect(read(JSON.stringify({ on: 1, limits: { searchEngines: [odd] } }))).toEqual({ on: false, limits: {} });
    }
  });
});

describe('graph', () => {
  test('the upper edge is a round number that no sample exceeds', () => {
    expect([0, 9_999, 10_000, 10_001, 123_456, 2_000_000].map(roundTop)).toEqual([10_000, 10_000, 10_000, 20_000, 200_000, 2_000_000]);
  });

  test('the newest sample is at the right edge, and the height of a sample shows its rate', () => {
    const { line, area, top } = draw([0, 10_000, 20_000]);
    expect(top).toBe(20_000);
    const points = line.slice(1).split('L').map((point) => point.split(' ').map(Number));
    expect(points).toHaveLength(3);
    expect(points[2]).toEqual([WIDTH, 0]);
    expect(points[0]?.[1]).toBe(HEIGHT);
    expect(area.endsWith('Z')).toBe(true);
    expect(draw([5]).line).toBe('');
  });

  test('there is one sample for each second of two minutes, also for seconds without a call', () => {
    const samples = new Samples();
    samples.add(1000, 1);
    samples.add(1400, 2);
    expect(samples.values).toEqual([2]);
    samples.add(4000, 3);
    expect(samples.values).toEqual([2, 3, 3, 3]);
    samples.add(3_600_000, 4);
    expect(samples.values).toHaveLength(MAX_SAMPLES);
    // A clock that is set back loses no samples.
    samples.add(1000, 5);
    expect(samples.values).toHaveLength(MAX_SAMPLES);
    expect(samples.values.at(-1)).toBe(5);
  });
});

describe('state', () => {
  const state = (phase: VolunteerState['phase'], more: Partial<VolunteerState> = {}): VolunteerState => ({
    on: phase !== 'off', phase, gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0, ...more,
  });

  test('each phase has a line and a reason', () => {
    expect(stateLines(state('off')).state).toBe('Off');
    expect(stateLines(state('reachable', { gateways: 1 })).why).toContain('one gateway.');
    expect(stateLines(state('reachable', { gateways: 3 })).why).toContain('three gateways.');
    expect(stateLines(state('unreachable', { why: 'no relay answers' })).why).toBe('No relay answers.');
    expect(stateLines(state('paused', { why: 'runs on battery' })).why).toBe('Runs on battery.');
    for (const phase of ['starting', 'registering', 'connecting', 'unreachable', 'paused'] as const) {
      expect(stateLines(state(phase)).why.length).toBeGreaterThan(10);
    }
  });

  test('limits are shown as one line', () => {
    expect(limitsInShort({})).toBe('no speed limit');
    expect(limitsInShort({ bytesPerSecond: 500_000, bytesTotal: 1e9, onlyOnPower: true, onlyUnmetered: true })).toBe(
      'at most 500 kB/s · 1 GB in total · plugged in · not mobile',
    );
  });
});

describe('search engines', () => {
  const good = { name: 'good', title: 'Good', description: '<a/>' };

  test('only valid engines of a network’s description are used', () => {
    const odd = [null, 5, {}, { name: 'No name', description: '' }, { name: 'x' }, { name: 'x', description: 'x'.repeat(64 * 1024 + 1) }];
    expect(readEngines([...odd, good, { ...good, title: 'Twice' }])).toEqual([good]);
    expect(readEngines([{ ...good, title: 5, more: 1 }])).toEqual([{ name: 'good', description: '<a/>' }]);
    for (const none of [undefined, null, 'x', {}, 5]) expect(readEngines(none)).toEqual([]);
    expect(readEngines(Array.from({ length: 100 }, (_, number) => ({ ...good, name: `e${number}` })))).toHaveLength(32);
  });

  test('are chosen by their names in the network’s description, or by their own description', () => {
    const own = { name: 'own', description: '<b/>' };
    expect(chooseEngines(['good', own], [good])).toEqual([good, own]);
    for (const unknown of ['other', {}, null]) {
      expect(() => chooseEngines([unknown as never], [good])).toThrow(expect.objectContaining({ kind: 'bad-input' }));
    }
  });

  test('and directories are the only origins that the page may fetch from', () => {
    expect(sources(['https://d.example/umbel/', 'https://d.example'], ['https://e.example', 'https://e.example']))
      .toBe("'self' https://d.example https://e.example");
    expect(sources(['http://[::1]:9360', 'no address', 'https://d.example'], [])).toBe("'self' http: https://d.example");
  });

  test('are chosen with their origins: an engine of the same name with other origins is another', () => {
    const chosen = { name: 'e', origins: ['https://e.example', 'http://de.example:81'] };
    expect(isSame(chosen, { name: 'e', origins: [...chosen.origins].reverse() })).toBe(true);
    const other = { name: 'e', origins: ['https://e.example'] };
    expect(isSame(chosen, other)).toBe(false);
    expect(isSame(chosen, { ...chosen, name: 'f' })).toBe(false);
    expect(shortOrigins(chosen.origins)).toBe('e.example, http://de.example:81');
    expect(movedText(chosen, other)).toMatch(/at e\.example, http:\/\/de\.example:81\. Now it is at e\.example,/);
  });

  test('have texts for their states', () => {
    expect(stateText(undefined)).toBe('');
    expect(stateText({ name: 'e', offered: false })).toContain('Testing');
    expect(stateText({ name: 'e', offered: false, why: 'It is shut.' })).toContain('It is shut.');
    expect(stateText({ name: 'e', offered: true })).toContain('querying it for others');
  });
});
