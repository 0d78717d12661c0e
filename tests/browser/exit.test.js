// A tab as an exit for searches: with a real engine that no other exit offers, and with misbehaving engines.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS, launch } from './browsers.js';
import { screenshots } from './screenshots.js';
import { testnet } from './testnet.js';
import { serve, volunteer as volunteerIn } from './through.js';

const withTimeout = { timeout: 120000 };
const TERMS = 'message';
const BOOK = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'umbel-tools/rust-book/rust-book.zim');

const describeEngine = (name, template) => `<?xml version="1.0" encoding="UTF-8"?>
  <OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/" xmlns:umbel="urn:umbel:engine">
    <ShortName>Engine ${name}</ShortName><umbel:engine name="${name}"/>
    <Url type="application/rss+xml" template="${template.replaceAll('&', '&amp;')}"/>
  </OpenSearchDescription>`;

const RSS = `<?xml version="1.0"?><rss version="2.0"><channel><item><title>A <![CDATA[<b>bold</b>]]> &amp;amp; &lt;i&gt;short&lt;/i&gt; title</title>
  <link>/found?utm_source=x</link><description>Rc&amp;lt;T&amp;gt; &lt;script&gt;no()&lt;/script&gt;words</description></item></channel></rss>`;
const LONG = 200_000;
// Answers in each format, as in `src/engine/tests.rs`, with the expected results.
const FORMATS = {
  json: {
    media: 'application/json',
    // The texts contain HTML entities and elements.
    answer: JSON.stringify({ results: [{ url: '/json?fbclid=1', title: 'Caf&eacute; Vec<String>', content: 'a<br>b' }, { url: 'javascript:x', title: 'bad' }] }),
    results: [['Café Vec<String>', '/json', 'a b']],
  },
  searxng: {
    media: 'application/json',
    answer: `{"query": "x", "number_of_results": 0, "padding": "${'x'.repeat(LONG)}", "results": [
      {"url": "https://example.org/a?fbclid=1", "title": "A & <b>b</b>", "content": null, "score": 1.0},
      {"url": "javascript:alert(1)", "title": "bad", "content": ""}, {"title": "no link"}, 7,
      {"url": "https://example.org/c", "title": "", "content": "text\\nmore"}]}`,
    results: [['A & b', 'https://example.org/a', ''], ['example.org', 'https://example.org/c', 'text more']],
  },
  mapped: {
    media: 'application/json',
    more: `<umbel:results type="application/json" select="/query/search" total="/query/searchinfo/totalhits"
      title="/title" link="/wiki/{/title}?id={/pageid}" snippet="/snippet"/>`,
    answer: `{"query": {"searchinfo": {"totalhits": 31}, "search": [
      {"title": "Größe/Æ", "pageid": 5, "snippet": "a <span class=\\"searchmatch\\">match</span> &quot;x&quot;"},
      {"title": "no id", "snippet": "x"}, {"title": ["x"], "pageid": 1}]}}`,
    results: [['Größe/Æ', '/wiki/Gr%C3%B6%C3%9Fe%2F%C3%86?id=5', 'a match "x"']],
  },
  suggested: {
    media: 'application/x-suggestions+json',
    answer: '["x", ["A", "B", "C"], ["first"], ["https://example.org/a", 7, "https://example.org/c"]]',
    results: [['A', 'https://example.org/a', 'first'], ['C', 'https://example.org/c', '']],
  },
  atom: {
    media: 'application/atom+xml',
    answer: `<feed xmlns="http://www.w3.org/2005/Atom" xmlns:os="http://a9.com/-/spec/opensearch/1.1/">
      <title>Search</title><os:totalResults>7</os:totalResults>
      <entry><title type="html">&lt;b&gt;One&lt;/b&gt; &amp;amp; two</title>
        <link rel="self" href="http://engine.example/self"/><link href="/a?utm_source=feed"/><summary>A summary</summary></entry>
      <entry><title>Three</title><link rel="alternate" href="https://example.org/"/>
        <content type="xhtml"><div xmlns="http://www.w3.org/1999/xhtml">Some <i>content</i></div></content></entry></feed>`,
    results: [['One & two', '/a', 'A summary'], ['Three', 'https://example.org/', 'Some content']],
  },
};

let overlay, driver, folder, kiwix, kiwixUrl, badServer, strayServer;
const queries = [];
const strayRequests = [];
// Withheld answers, by path and terms of the query: promises of the query's arrival and of its close, and the functions that resolve them.
const held = new Map();

function hold(path, terms) {
  const entry = {};
  entry.arrival = new Promise((resolve) => (entry.arrive = resolve));
  entry.closing = new Promise((resolve) => (entry.close = resolve));
  held.set(`${path} ${terms}`, entry);
  return entry;
}

// The result of `promise`, or after 30 s an error that names the missing event.
async function inTime(promise, what) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what}: not in time`)), 30000)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// A base URL with a free port on loopback.
async function freeUrl() {
  const { url, stop } = await serve();
  stop();
  return url;
}

// Starts a second Kiwix, which the exits of the testnet do not offer.
async function startKiwix() {
  assert(existsSync(BOOK), '`cargo xtask book` makes the book that is searched');
  const url = await freeUrl();
  const child = spawn('kiwix-serve', ['--address=127.0.0.1', `--port=${new URL(url).port}`, BOOK], { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => line.includes(new URL(url).host) && resolve());
    child.once('error', reject);
    child.once('exit', () => reject(new Error('kiwix-serve ended')));
  });
  return [child, url];
}

// An engine. The path or, for /terms, the search terms select its misbehaviour.
function misbehave(request, response) {
  const url = new URL(request.url, badServer.url);
  queries.push({ path: url.pathname, terms: url.searchParams.get('q'), fields: request.headers });
  const behaviour = url.pathname === '/terms' ? url.searchParams.get('q') : url.pathname.slice(1);
  if (behaviour !== 'closed') response.setHeader('access-control-allow-origin', '*');
  response.setHeader('content-type', 'application/rss+xml');
  response.setHeader('set-cookie', 'who=you; Path=/');
  const entry = held.get(`${url.pathname} ${url.searchParams.get('q')}`);
  if (entry) {
    entry.answer = () => response.end(RSS);
    response.once('close', () => entry.close(response.writableFinished));
    return entry.arrive();
  }
  const endless = () => {
    if (!response.destroyed) response.write(' '.repeat(65536), () => setImmediate(endless));
  };
  switch (behaviour) {
    case 'endless': return endless();
    case 'slow': return response.write('<rss>');
    case 'elsewhere': return response.writeHead(302, { location: `${strayServer.url}/stolen${url.search}` }).end();
    case 'wrong': return response.end('<!doctype html><p>Hello');
    case 'laughs': return response.end('<!DOCTYPE rss [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><rss><channel><title>&b;</title></channel></rss>');
    case 'deep': return response.end(`<rss>${'<a>'.repeat(2000)}${'</a>'.repeat(2000)}</rss>`);
    case 'wide': return response.end(`<rss><a${Array.from({ length: 20000 }, (_, n) => ` a${n}=""`).join('')}/></rss>`);
    case 'many': return response.end(`<rss>${'<a/>'.repeat(60000)}</rss>`);
    case 'forbidden': return response.writeHead(403).end('no');
    case 'busy': return response.writeHead(429).end('no');
    case 'broken': return response.writeHead(500).end('no');
    default: return response.end(FORMATS[behaviour]?.answer ?? RSS);
  }
}

// Records requests to a server that must not receive any.
function stray(request, response) {
  strayRequests.push(request.url);
  response.setHeader('access-control-allow-origin', '*');
  response.end(RSS);
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'umbel-exit-'));
  [kiwix, kiwixUrl] = await startKiwix();
  badServer = await serve(misbehave);
  strayServer = await serve(stray);
}, { timeout: 600000 });

// Starts the overlay, with relays at `address`, and the browser.
async function start(browser, address) {
  const file = (name, template) => {
    writeFileSync(join(folder, `${name}.xml`), describeEngine(name, template));
    return `--web-engine=${join(folder, `${name}.xml`)}`;
  };
  overlay = await testnet({ address, options: [
    file('only-tabs', `${kiwixUrl}/search?format=xml&pattern={searchTerms}&pageLength={count}&start={startIndex}`),
    file('closed', `${badServer.url}/closed?q={searchTerms}`),
  ] });
  driver = await launch(browser);
}

async function end() {
  await driver?.close();
  await overlay?.stop();
  [queries, strayRequests].forEach((records) => records.splice(0));
  held.clear();
}

after(() => {
  kiwix?.kill('SIGTERM');
  [badServer, strayServer].forEach((server) => server?.stop());
  if (folder) rmSync(folder, { recursive: true, force: true });
});

async function open(path) {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(overlay.directory + path, { waitUntil: 'load' });
  return { page, close: () => context.close() };
}

// A tab with a volunteer of the library.
const volunteer = (limits) => volunteerIn(driver, overlay, limits);

// Calls the API of the testnet's native client.
const native = async (path, body) => {
  const fields = { 'umbel-api': '1', ...(body && { 'content-type': 'application/json' }) };
  const answer = await fetch(overlay.page + path, { method: body ? 'POST' : 'GET', headers: fields, body: body && JSON.stringify(body) });
  return { status: answer.status, ...(await answer.json().then((json) => (Array.isArray(json) ? { list: json } : json))) };
};

// Waits until the native client lists `count` exits for `engine`; returns their identities.
async function waitForExits(engine, count) {
  const end = performance.now() + 30000;
  for (;;) {
    const { list } = await native('/api/engines');
    const exits = list.find((entry) => entry.engine === engine)?.exits.map(({ exit }) => exit) ?? [];
    if (exits.length === count) return exits;
    assert(performance.now() < end, `${exits.length} exits offer ${engine}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

// A page with a client that lists an exit for `engine`.
async function searchingPage(engine) {
  const { page, close } = await open('/volunteer');
  await page.evaluate(async () => {
    const { connect } = await import('/umbel.js');
    globalThis.umbel = await connect({ network: '/umbel.json' });
  });
  await page.waitForFunction((engine) => globalThis.umbel.engines().some(({ name }) => name === engine), { timeout: 30000, polling: 50 }, engine);
  const search = (query) => page.evaluate((query) =>
    globalThis.umbel.search(query).catch(({ kind, message }) => ({ kind, message })), query);
  return { search, close };
}

const waitForText = (page, selector, words) => page.waitForFunction((selector, words) =>
  document.querySelector(selector)?.textContent.includes(words), { timeout: 30000, polling: 50 }, selector, words);

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? nonLoopbackAddress() : undefined;

  describe(`a tab of ${browser} as an exit for searches`, { skip: skipReason(browser, address) }, () => {
    before(() => start(browser, address), { timeout: 600000 });
    after(end);

    test('offers no engine and queries none until the user chooses one', withTimeout, async () => {
      const { page, close } = await open('/volunteer');
      await page.waitForSelector('#exit:not([hidden])');
      assert.deepEqual(await page.$$eval('#exit-form input', (all) => all.map((box) => [box.name, box.checked])),
        [[(await native('/api/engines')).list[0].engine, false], ['only-tabs', false], ['closed', false]]);
      await page.click('#switch');
      await page.waitForSelector('#power[data-phase="reachable"]', { timeout: 30000 });
      // The list contains a tab that started later, so the list also contains this tab.
      const tab = await volunteer({ searchEngines: [{ name: 'later', description: describeEngine('later', `${badServer.url}/later?q={searchTerms}`) }] });
      await waitForExits('later', 1);
      await waitForExits('only-tabs', 0);
      await tab.close();
      const { error } = await native('/api/search', { terms: TERMS, engine: 'only-tabs' });
      assert.match(error, /no exit of this network offers this engine/);
      assert.equal(await page.$eval('#exit-now', (entry) => entry.textContent), 'off');
      await close();
    });

    test('answers a native client and a page with a real engine after the user has ticked its box', withTimeout, async () => {
      const { page, close } = await open('/volunteer');
      await page.waitForSelector('#exit:not([hidden])');
      await page.click('#exit summary');
      await page.click('input[name=only-tabs]');
      await page.click('input[name=closed]');
      await page.click('#switch');
      await waitForText(page, 'label:has([name=only-tabs]) + p', 'You are querying it for others');
      await waitForText(page, 'label:has([name=closed]) + p', 'forbids this');
      await screenshots(page, browser, 'exit');

      const [exit] = await waitForExits('only-tabs', 1);
      await waitForExits('closed', 0);
      const found = await native('/api/search', { terms: TERMS, engine: 'only-tabs' });
      assert.equal(found.status, 200, JSON.stringify(found));
      assert.equal(found.path.length, 3);
      assert.equal(found.path[2].relay, exit);
      const direct = await (await fetch(`${kiwixUrl}/search?format=xml&pattern=${TERMS}&pageLength=10&start=1`)).text();
      const titles = [...direct.matchAll(/<item>\s*<title>(.*?)<\/title>/g)].map(([, title]) => title);
      assert.deepEqual(found.results.map(({ title }) => title), titles.map((title) => title.replaceAll('&lt;', '<').replaceAll('&gt;', '>')));
      assert(found.results.every(({ url }) => url.startsWith(kiwixUrl)));
      assert(found.more && found.total > 10);

      const client = await searchingPage('only-tabs');
      const seen = await client.search({ terms: TERMS, engine: 'only-tabs' });
      assert.deepEqual(seen.results, found.results.map(({ title, url, snippet }) => ({ title, url, snippet })));
      assert.deepEqual(seen.path.map(({ volunteer }) => volunteer), [false, false, true]);
      assert(seen.path[2].relay.startsWith(exit));
      const second = await client.search({ terms: TERMS, engine: 'only-tabs', page: 2 });
      assert.notDeepEqual(second.results, seen.results);
      await client.close();
      await waitForText(page, '#searches', '3');

      // The page has no record of the queries.
      assert.deepEqual(await page.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name)), []);

      // The page can fetch from the configured engines only.
      const tried = await page.evaluate((...urls) => Promise.all(urls.map((url) =>
        fetch(url).then(() => 'answered', ({ name }) => name))), `${strayServer.url}/from-the-page`, `${kiwixUrl}/`);
      assert.deepEqual(tried, ['TypeError', 'answered']);
      assert.deepEqual(strayRequests, []);

      // A choice persists over a reload, and a deselected engine is no longer offered.
      await page.reload();
      await waitForText(page, 'label:has([name=only-tabs]) + p', 'You are querying it for others');
      await waitForExits('only-tabs', 1);
      await page.$eval('input[name=only-tabs]', (box) => box.click());
      await waitForExits('only-tabs', 0);
      await waitForText(page, '#exit-now', 'closed');

      // An engine with a chosen name but another address is not chosen.
      await waitForText(page, 'label:has([name=closed])', new URL(badServer.url).host);
      await page.evaluate(() => {
        const stored = JSON.parse(localStorage.getItem('umbel-volunteer'));
        stored.limits.searchEngines[0].origins = ['https://engine.example'];
        localStorage.setItem('umbel-volunteer', JSON.stringify(stored));
      });
      await page.reload();
      await waitForText(page, 'label:has([name=closed]) + p', 'You had chosen an engine of this name at engine.example');
      assert.equal(await page.$eval('input[name=closed]', (box) => box.checked), false);
      await waitForText(page, '#exit-now', 'off');
      await close();
    });

    test('shows the failure of each misbehaving engine, and offers none of them', withTimeout, async () => {
      const words = {
        closed: /Web pages can't read/, endless: /too long/, elsewhere: /another host/, wrong: /is malformed/,
        forbidden: /blocks this exit/, slow: /did not answer in time/,
      };
      const searchEngines = Object.keys(words).map((name) => ({ name, description: describeEngine(name, `${badServer.url}/${name}?q={searchTerms}`) }));
      const tab = await volunteer({ searchEngines });
      const isSettled = ({ searchEngines }, count) => searchEngines.length === count && searchEngines.every(({ why }) => why);
      await tab.until(isSettled, searchEngines.length);
      for (const { name, offered, why } of (await tab.state()).searchEngines) {
        assert.equal(offered, false);
        assert.match(why, words[name], name);
      }
      assert.deepEqual(strayRequests, [], 'no redirect is followed');
      await tab.close();
    });

    test('reports failures of an engine to clients, and enforces its caps', withTimeout, async () => {
      const tab = await volunteer({ searchEngines: [{ name: 'terms', description: describeEngine('terms', `${badServer.url}/terms?q={searchTerms}`) }] });
      const client = await searchingPage('terms');
      const answers = {
        endless: /too long/, elsewhere: /another host/, wrong: /is malformed/, laughs: /is malformed/, deep: /is malformed/,
        wide: /is malformed/, many: /is malformed/,
        broken: /reported a failure/, slow: /did not answer in time/, closed: /could not reach/,
      };
      // On a fast machine, the queries exceed the rate of the tab for one gateway.
      const searchWithinRate = async (query) => {
        for (;;) {
          const answer = await client.search(query);
          if (!/rate limit/.test(answer.message)) return answer;
        }
      };
      for (const [terms, words] of Object.entries(answers)) {
        const { message } = await searchWithinRate({ terms, engine: 'terms' });
        assert.match(message, words, terms);
      }
      assert.deepEqual(strayRequests, [], 'no redirect is followed');
      // The engine is still offered, because a new trial has succeeded.
      const { results } = await searchWithinRate({ terms: 'plain', engine: 'terms', language: 'de' });
      assert.deepEqual(results, [{ title: 'A bold & short title', url: `${badServer.url}/found`, snippet: 'Rc<T> words' }]);
      // The query has no cookie, although the engine has set one, and no referrer.
      const { fields } = queries.findLast(({ terms }) => terms === 'plain');
      assert.deepEqual([fields.cookie, fields.referer], [undefined, undefined]);
      assert.match(fields['accept-language'], /^de,/);
      assert.equal((await tab.state()).searchEngines[0].offered, true);
      // These queries are last: after the engine has blocked the exit, the client avoids the exit for ten minutes.
      for (const terms of ['forbidden', 'plain']) {
        const { message } = await searchWithinRate({ terms, engine: 'terms' });
        assert.match(message, /blocks (this|every) exit/, terms);
      }
      await client.close();
      await tab.close();
    });

    test('aborts the trial and the queries of an engine that is no longer chosen', withTimeout, async () => {
      const engine = (name) => ({ name, description: describeEngine(name, `${badServer.url}/${name}?q={searchTerms}`) });
      const trial = hold('/a-slow', 'test');
      const tab = await volunteer({ searchEngines: ['a-slow', 'b-next'].map(engine) });
      await inTime(trial.arrival, 'a trial');
      const choose = (...names) => tab.page.evaluate((searchEngines) => globalThis.tab.setLimits({ searchEngines }), names.map(engine));
      await choose('c-good');
      assert.equal(await inTime(trial.closing, 'the end of the trial'), false);
      await tab.until((state) => state.searchEngines[0]?.offered);
      assert(!queries.some(({ path }) => path === '/b-next'), 'a deselected engine is not tried');

      const client = await searchingPage('c-good');
      const query = hold('/c-good', 'held');
      const answer = client.search({ terms: 'held', engine: 'c-good' });
      await inTime(query.arrival, 'the query');
      await choose();
      assert.equal(await inTime(query.closing, 'the end of the query'), false);
      assert.match((await answer).message, /no longer offers this engine/);
      await client.close();
      await tab.close();
    });

    test('answers earlier queries after it is turned off, and accepts no more', withTimeout, async () => {
      const tab = await volunteer({ searchEngines: [{ name: 'drains', description: describeEngine('drains', `${badServer.url}/drains?q={searchTerms}`) }] });
      const client = await searchingPage('drains');
      const query = hold('/drains', 'held');
      const answer = client.search({ terms: 'held', engine: 'drains' });
      await inTime(query.arrival, 'the query');
      await tab.page.evaluate(() => void (globalThis.stopped = globalThis.tab.stop()));
      const { message } = await client.search({ terms: 'late', engine: 'drains' });
      assert(message);
      assert(!queries.some(({ terms }) => terms === 'late'));
      query.answer();
      assert.equal((await answer).results?.length, 1);
      // A second call of stop() returns the same promise.
      assert(await tab.page.evaluate(() => globalThis.tab.stop() === globalThis.stopped));
      await tab.page.evaluate(() => globalThis.stopped);
      await client.close();
      await tab.close();
    });

    test('parses feeds and JSON like native exits', withTimeout, async () => {
      const engine = ([name, { media, more = '' }]) => ({ name, description: describeEngine(name, `${badServer.url}/${name}?q={searchTerms}`)
        .replace('application/rss+xml', media).replace('</Open', `${more}</Open`) });
      const tab = await volunteer({ searchEngines: Object.entries(FORMATS).map(engine) });
      for (const [name, { results }] of Object.entries(FORMATS)) {
        const client = await searchingPage(name);
        const expected = results.map(([title, url, snippet]) => ({ title, url: url.replace(/^\//, `${badServer.url}/`), snippet }));
        assert.deepEqual((await client.search({ terms: TERMS, engine: name })).results, expected, name);
        await client.close();
      }
      // The total includes the engines' answers.
      await tab.until((state, minimum) => state.bytesTotal > minimum, LONG);
      await tab.close();
    });

    test('rejects engines that a tab cannot query', withTimeout, async () => {
      const { page, close } = await open('/volunteer');
      const html = describeEngine('html', 'https://engine.example/?q={searchTerms}').replace('application/rss+xml', 'text/html')
        .replace('</Open', '<umbel:results type="text/html" select="p" title="b" link="a"/></Open');
      const cases = [
        ['unknown', /has no search engine/], [{ name: 'No name', description: '' }, /not a name of a search engine/],
        [{ name: 'x', description: '<a>' }, /not well-formed XML/], [{ name: 'x', description: '<a/>' }, /not an OpenSearch/],
        [{ name: 'x', description: '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>' }, /entities/], [{ name: 'html', description: html }, /only as HTML/],
      ];
      const failures = await page.evaluate(async (chosen) => {
        const { volunteer } = await import('/umbel.js');
        const failures = [];
        for (const engine of chosen) {
          failures.push(await volunteer({ network: '/umbel.json', limits: { searchEngines: [engine] }, onstate: () => undefined })
            .then(() => ({}), ({ kind, message }) => ({ kind, message })));
        }
        return failures;
      }, cases.map(([engine]) => engine));
      failures.forEach(({ kind, message }, index) => {
        assert.equal(kind, 'bad-input');
        assert.match(message, cases[index][1]);
      });
      await close();
    });
  });
}
