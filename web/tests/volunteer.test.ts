import { describe, expect, test } from 'vitest';

import { HEIGHT, SPAN, Samples, WIDTH, draw, roundTop } from '../src/volunteer/graph';
import { DEFAULTS, read } from '../src/volunteer/settings';
import { limitsInShort, tell } from '../src/volunteer/told';
import type { VolunteerState } from '../src/umbel';

describe('settings', () => {
  test('what was kept comes back', () => {
    const settings = { on: true, limits: { bytesPerSecond: 5, bytesTotal: 6, onlyOnPower: true, searchEngines: ['wikipedia'] } };
    expect(read(JSON.stringify(settings))).toEqual(settings);
    expect(read('{"on":false,"limits":{}}')).toEqual({ on: false, limits: {} });
  });

  test('nothing kept, or nothing that can be read, means off', () => {
    for (const text of [null, '', '{', 'null', '5', '[]', '{"on":true}', '{"on":true,"limits":null}']) expect(read(text)).toEqual(DEFAULTS);
    expect(DEFAULTS.on).toBe(false);
    expect(DEFAULTS.limits.searchEngines).toBeUndefined();
  });

  test('odd values are left out', () => {
    const limits = { bytesPerSecond: -1, bytesTotal: 1e400, onlyOnPower: 'yes', onlyUnmetered: 1, searchEngines: ['<b>', 5, ''] };
    expect(read(JSON.stringify({ on: 1, limits }))).toEqual({ on: false, limits: {} });
  });
});

describe('graph', () => {
  test('its upper edge is a round number that no sample exceeds', () => {
    expect([0, 9_999, 10_000, 10_001, 123_456, 2_000_000].map(roundTop)).toEqual([10_000, 10_000, 10_000, 20_000, 200_000, 2_000_000]);
  });

  test('the newest sample stands at the right edge, and the highest rate at its height', () => {
    const { line, area, top } = draw([0, 10_000, 20_000]);
    expect(top).toBe(20_000);
    const points = line.slice(1).split('L').map((point) => point.split(' ').map(Number));
    expect(points).toHaveLength(3);
    expect(points[2]).toEqual([WIDTH, 0]);
    expect(points[0]?.[1]).toBe(HEIGHT);
    expect(area.endsWith('Z')).toBe(true);
    expect(draw([5]).line).toBe('');
  });

  test('keeps two minutes, one sample a second, also of seconds that nobody looked at', () => {
    const samples = new Samples();
    samples.add(1000, 1);
    samples.add(1400, 2);
    expect(samples.values).toEqual([2]);
    samples.add(4000, 3);
    expect(samples.values).toEqual([2, 3, 3, 3]);
    samples.add(3_600_000, 4);
    expect(samples.values).toHaveLength(SPAN);
    // A clock set back loses nothing.
    samples.add(1000, 5);
    expect(samples.values).toHaveLength(SPAN);
    expect(samples.values.at(-1)).toBe(5);
  });
});

describe('state', () => {
  const state = (phase: VolunteerState['phase'], more: Partial<VolunteerState> = {}): VolunteerState => ({
    on: phase !== 'off', phase, gateways: 0, circuits: 0, bytesNow: 0, bytesTotal: 0, searchEngines: [], searches: 0, ...more,
  });

  test('each phase is told in a line and the reason', () => {
    expect(tell(state('off')).state).toBe('Off');
    expect(tell(state('reachable', { gateways: 1 })).why).toContain('one gateway.');
    expect(tell(state('reachable', { gateways: 3 })).why).toContain('three gateways.');
    expect(tell(state('unreachable', { why: 'no relay answers' })).why).toBe('No relay answers.');
    expect(tell(state('paused', { why: 'runs on battery' })).why).toBe('Runs on battery.');
    for (const phase of ['starting', 'registering', 'connecting', 'unreachable', 'paused'] as const) {
      expect(tell(state(phase)).why.length).toBeGreaterThan(10);
    }
  });

  test('limits are told in short', () => {
    expect(limitsInShort({})).toBe('as fast as it goes');
    expect(limitsInShort({ bytesPerSecond: 500_000, bytesTotal: 1e9, onlyOnPower: true, onlyUnmetered: true })).toBe(
      'at most 500 kB/s · 1 GB in all · plugged in · not mobile',
    );
  });
});
