import { beforeAll, describe, expect, test, vi } from 'vitest';

import { MAX_TERMS, address, fromFragment, fromState, query, webUrl } from '../src/search/place';

beforeAll(() => vi.stubGlobal('location', { href: 'https://dir.example/search?x=1#old' }));

describe('URLs', () => {
  test('only web URLs with a host are accepted, without user name and password', () => {
    expect(webUrl('https://user:secret@example.org/a?b#c')?.href).toBe('https://example.org/a?b#c');
    expect(webUrl('../d', new URL('http://example.org/a/b/c'))?.href).toBe('http://example.org/a/d');
    for (const bad of ['', '/a', 'javascript:alert(1)', 'JavaScript:alert(1)', 'data:text/html,x', 'file:///etc/passwd', 'blob:https://a/b', 'https://', 'about:blank', ` ${'x'.repeat(9000)}`]) {
      expect(webUrl(bad), bad).toBeUndefined();
    }
  });
});

describe('places', () => {
  test('the URL of a place leads to this place', () => {
    const results = { at: 'results', query: query('two words & more', 'kiwix', 'de', 3) } as const;
    expect(fromFragment(new URL(address(results)).hash)).toEqual(results);
    const reader = { at: 'reader', url: 'https://example.org/?q=a&b=c#d' } as const;
    expect(fromFragment(new URL(address(reader)).hash)).toEqual(reader);
    expect(address({ at: 'home' })).toBe('https://dir.example/search');
  });

  test('an invalid fragment leads home', () => {
    for (const odd of ['', '#', '#q=', '#q=%20', '#read=javascript:alert(1)', '#%', '#results']) expect(fromFragment(odd)).toEqual({ at: 'home' });
  });

  test('invalid parts of a query are omitted', () => {
    expect(query(' a ', '<b>', 'x y', Number.NaN)).toEqual({ terms: 'a', page: 1 });
    expect(query('a', null, null, 1e9).page).toBe(100);
    expect(query('x'.repeat(5000)).terms).toHaveLength(MAX_TERMS);
  });

  test('an invalid state is no place', () => {
    for (const odd of [null, undefined, 5, {}, { at: 'reader' }, { at: 'reader', url: 'javascript:alert(1)' }, { at: 'results', query: {} }]) {
      expect(fromState(odd)).toBeUndefined();
    }
    expect(fromState({ at: 'home' })).toEqual({ at: 'home' });
    expect(fromState({ at: 'leave', url: 'https://example.org' })).toEqual({ at: 'leave', url: 'https://example.org/' });
  });
});
