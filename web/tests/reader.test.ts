// @vitest-environment jsdom
import { describe, expect, test } from 'vitest';

import { clean, plain } from '../src/search/clean';
import { decode, read, contentOf } from '../src/search/reader';
import { frame } from '../src/search/frame';
import type { PageResponse } from '../src/umbel';

const URL_ = new URL('https://site.example/dir/page');
const readerAddress = (url: URL) => `/search#read=${encodeURIComponent(url.href)}`;
const cleaned = (html: string) => clean(html, URL_, readerAddress);
const response = (body: string, more: Partial<PageResponse> = {}): PageResponse => ({
  status: 200, headers: [['Content-Type', 'text/html; charset=utf-8']], body: new TextEncoder().encode(body), path: [], ...more,
});

describe('cleaning', () => {
  test('a hostile page keeps nothing that loads, runs, requests input or leads elsewhere', () => {
    const hostile = `<title>A\u202etitle</title><body onload="alert(1)" style="background:url(https://t.example/)">
      <script>alert(1)</script><style>@import "https://t.example/"</style><link rel=stylesheet href=https://t.example/>
      <img src=x onerror=alert(1)><picture><source srcset=https://t.example/></picture><video src=https://t.example/ poster=x></video>
      <iframe src=https://t.example/></iframe><object data=https://t.example/></object><embed src=https://t.example/>
      <svg><script>alert(1)</script><a xlink:href="javascript:alert(1)">x</a></svg>
      <form action=https://t.example/><input name=a value=secret><button>Send</button><textarea>x</textarea></form>
      <meta http-equiv=refresh content="0;url=https://t.example/"><base target=_top><template><img src=https://t.example/></template>
      <p class=c style="color:red" onclick=alert(1) data-x=y aria-label=z id=power ping=https://t.example/>Kept <b>text</b></p>
      <a href="javascript:alert(1)">one</a><a href=" java\nscript:alert(1)">two</a><a href="data:text/html,x">three</a>
      <a href="//other.example/x" target=_top ping=https://t.example/ download>four</a><a href="next">five</a><a href="#part">six</a>
      <math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>
      <noscript><p title="</noscript><img src=x onerror=alert(1)>"></noscript></body>`;
    const { title, html } = cleaned(hostile)!;
    expect(title).toBe('A title');
    for (const bad of [/<(script|style|link|img|picture|source|video|iframe|object|embed|svg|math|form|input|button|textarea|meta|base|template|noscript)/i, /\son\w+=/i, /style=/i, /class=/i, /data-/i, /javascript:/i, /data:/i, /alert/, /target=/i, /ping=/i, /t\.example/, /secret/]) {
      expect(html).not.toMatch(bad);
    }
    expect(html).toContain('<p id="page-power">Kept <b>text</b></p>');
    const links = [...html.matchAll(/href="([^"]*)"/g)].map(([, href]) => href);
    expect(links).toEqual([readerAddress(new URL('https://other.example/x')), readerAddress(new URL('https://site.example/dir/next')), '#page-part']);
  });

  test('URLs are relative to the page’s base, if that is a web URL', () => {
    expect(cleaned('<base href="https://b.example/x/"><a href="y">l</a>')!.html).toContain(readerAddress(new URL('https://b.example/x/y')));
    expect(cleaned('<base href="javascript:x"><a href="y">l</a>')!.html).toContain(readerAddress(new URL('https://site.example/dir/y')));
  });

  test('only the main element is shown, if it has enough text', () => {
    expect(cleaned(`<nav>Menu</nav><main>${'words '.repeat(60)}</main>`)!.html).not.toContain('Menu');
    expect(cleaned('<nav>Menu</nav><main>few</main>')!.html).toContain('Menu');
  });

  test('a page with too many elements is rejected', () => {
    expect(cleaned('<br>'.repeat(60_000))).toBeUndefined();
  });

  test('a title is one line without control and direction characters', () => {
    expect(plain(' a\n\tb\u202ec\u0007 ')).toBe('a b c');
  });
});

describe('reading', () => {
  test('text files are shown as text, and other files are rejected', () => {
    expect(contentOf(response('<b>x</b>', { headers: [['content-type', 'text/plain']] }), URL_)).toEqual({ plain: '<b>x</b>' });
    expect(() => contentOf(response('x', { headers: [['content-type', 'image/png']] }), URL_)).toThrow('image/png');
    expect(() => contentOf(response('x', { headers: [['content-encoding', 'br']] }), URL_)).toThrow('content encoding');
    expect(() => contentOf(response('', { status: 404 }), URL_)).toThrow('404');
    expect(() => contentOf(response('', { body: new Uint8Array(4 * 1024 * 1024) }), URL_)).toThrow('larger');
  });

  test('redirects are followed a few times, and only to web URLs', async () => {
    const requested: string[] = [];
    const site = (answers: PageResponse[]) => ({
      request: async ({ url }: { url: string }) => {
        requested.push(url);
        return answers.shift() ?? response('', { status: 302, headers: [['location', '/again']] });
      },
    });
    const moved = response('', { status: 301, headers: [['Location', 'http://other.example/there#part']] });
    const reading = await read(site([moved, response('<p>Here</p>')]), new URL('https://site.example/#secret'));
    expect(requested).toEqual(['https://site.example/', 'http://other.example/there']);
    expect(reading.url.href).toBe('http://other.example/there#part');
    expect(reading.encrypted).toBe(false);
    await expect(read(site([]), URL_)).rejects.toThrow('redirects too often');
    await expect(read(site([response('', { status: 302, headers: [['location', 'file:///x']] })]), URL_)).rejects.toThrow('not http or https');
  });

  test('the encoding follows from the byte-order mark, the content type or the page', () => {
    expect(decode('text/html; charset=iso-8859-1', new Uint8Array([0xe9]), true)).toBe('é');
    expect(decode('text/html', new TextEncoder().encode('<meta charset="windows-1252">'), true)).toContain('meta');
    expect(decode('text/html; charset=nonsense', new TextEncoder().encode('é'), true)).toBe('é');
    expect(decode('text/plain; charset=iso-8859-1', new Uint8Array([0xef, 0xbb, 0xbf, 0xc3, 0xa9]), false)).toBe('é');
  });

  test('the frame allows no scripts', () => {
    const shown = frame('<p>x</p>', () => undefined);
    expect(shown.getAttribute('sandbox')).toBe('allow-same-origin');
    expect(shown.srcdoc).toContain("default-src 'none'");
  });
});
