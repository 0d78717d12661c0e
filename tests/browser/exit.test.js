// A tab that searches for others: over a real engine that nobody else offers, and over engines that misbehave.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { elsewhere, unreachable } from './addresses.js';
import { BROWSERS, launch } from './browsers.js';
import { screenshots } from './screenshots.js';
import { testnet } from './testnet.js';
import { serve, volunteer as volunteerIn } from './through.js';

const deadline = { timeout: 120000 };
const TERMS = 'message';
const BOOK = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'umbel-tools/rust-book/rust-book.zim');

const described = (name, template) => `<?xml version="1.0" encoding="UTF-8"?>
  <OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/" xmlns:umbel="urn:umbel:engine">
    <ShortName>Engine ${name}</ShortName><umbel:engine name="${name}"/>
    <Url type="application/rss+xml" template="${template.replaceAll('&', '&amp;')}"/>
  </OpenSearchDescription>`;

const RSS = `<?xml version="1.0"?><rss version="2.0"><channel><item><title>A <![CDATA[<b>bold</b>]]> &amp;amp; &lt;i&gt;short&lt;/i&gt; title</title>
  <link>/found?utm_source=x</link><description>Rc&amp;lt;T&amp;gt; &lt;script&gt;no()&lt;/script&gt;words</description></item></channel></rss>`;
const LONG = 200_000;
// Answers in each form, as `src/engine/tests.rs` has them, and what is to be made of them.
const FORMS = {
  json: {
    media: 'application/json',
    // With HTML's entities and elements.
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

let overlay, driver, folder, kiwix, kiwixAt, odd, other;
const asked = [];
const strayed = [];
// Answers that are held back, by the path and terms of the question: when it has come, and how to end it.
const held = new Map();

function hold(path, terms) {
  const one = {};
  one.come = new Promise((resolve) => (one.came = resolve));
  one.left = new Promise((resolve) => (one.leave = resolve));
  held.set(`${path} ${terms}`, one);
  return one;
}

// What `promise` gives, or a failure that says what didn't happen in time.
async function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what}: not in time`)), 30000)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function freeAddress() {
  const { at, stop } = await serve();
  stop();
  return at;
}

// A second Kiwix, of which the exits of the testnet know nothing.
async function startKiwix() {
  assert(existsSync(BOOK), '`cargo xtask book` makes the book that is searched');
  const at = await freeAddress();
  const child = spawn('kiwix-serve', ['--address=127.0.0.1', `--port=${new URL(at).port}`, BOOK], { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => line.includes(new URL(at).host) && resolve());
    child.once('error', reject);
    child.once('exit', () => reject(new Error('kiwix-serve ended')));
  });
  return [child, at];
}

// An engine that does what it is asked to: the terms say how it answers, whoever asks.
function misbehave(request, response) {
  const url = new URL(request.url, odd.at);
  asked.push({ path: url.pathname, terms: url.searchParams.get('q'), fields: request.headers });
  const how = url.pathname === '/terms' ? url.searchParams.get('q') : url.pathname.slice(1);
  if (how !== 'closed') response.setHeader('access-control-allow-origin', '*');
  response.setHeader('content-type', 'application/rss+xml');
  response.setHeader('set-cookie', 'who=you; Path=/');
  const one = held.get(`${url.pathname} ${url.searchParams.get('q')}`);
  if (one) {
    one.answer = () => response.end(RSS);
    response.once('close', () => one.leave(response.writableFinished));
    return one.came();
  }
  const endless = () => {
    if (!response.destroyed) response.write(' '.repeat(65536), () => setImmediate(endless));
  };
  switch (how) {
    case 'endless': return endless();
    case 'slow': return response.write('<rss>');
    case 'elsewhere': return response.writeHead(302, { location: `${other.at}/stolen${url.search}` }).end();
    case 'wrong': return response.end('<!doctype html><p>Hello');
    case 'laughs': return response.end('<!DOCTYPE rss [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><rss><channel><title>&b;</title></channel></rss>');
    case 'deep': return response.end(`<rss>${'<a>'.repeat(2000)}${'</a>'.repeat(2000)}</rss>`);
    case 'wide': return response.end(`<rss><a${Array.from({ length: 20000 }, (_, n) => ` a${n}=""`).join('')}/></rss>`);
    case 'many': return response.end(`<rss>${'<a/>'.repeat(60000)}</rss>`);
    case 'forbidden': return response.writeHead(403).end('no');
    case 'busy': return response.writeHead(429).end('no');
    case 'broken': return response.writeHead(500).end('no');
    default: return response.end(FORMS[how]?.answer ?? RSS);
  }
}

// Counts whoever comes here.
function stray(request, response) {
  strayed.push(request.url);
  response.setHeader('access-control-allow-origin', '*');
  response.end(RSS);
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'umbel-exit-'));
  [kiwix, kiwixAt] = await startKiwix();
  odd = await serve(misbehave);
  other = await serve(stray);
}, { timeout: 600000 });

// The overlay, its relays at `address`, and the browser.
async function start(browser, address) {
  const file = (name, template) => {
    writeFileSync(join(folder, `${name}.xml`), described(name, template));
    return `--web-engine=${join(folder, `${name}.xml`)}`;
  };
  overlay = await testnet({ address, options: [
    file('only-tabs', `${kiwixAt}/search?format=xml&pattern={searchTerms}&pageLength={count}&start={startIndex}`),
    file('closed', `${odd.at}/closed?q={searchTerms}`),
  ] });
  driver = await launch(browser);
}

async function end() {
  await driver?.close();
  await overlay?.stop();
  [asked, strayed].forEach((noted) => noted.splice(0));
  held.clear();
}

after(() => {
  kiwix?.kill('SIGTERM');
  [odd, other].forEach((server) => server?.stop());
  if (folder) rmSync(folder, { recursive: true, force: true });
});

async function open(path) {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(overlay.directory + path, { waitUntil: 'load' });
  return { page, close: () => context.close() };
}

// A tab that volunteers by the library.
const volunteer = (limits) => volunteerIn(driver, overlay, limits);

// What the testnet's native client says.
const native = async (path, body) => {
  const fields = { 'umbel-api': '1', ...(body && { 'content-type': 'application/json' }) };
  const answer = await fetch(overlay.page + path, { method: body ? 'POST' : 'GET', headers: fields, body: body && JSON.stringify(body) });
  return { status: answer.status, ...(await answer.json().then((json) => (Array.isArray(json) ? { list: json } : json))) };
};

// Waits until the native client knows of exits for `engine`, or of none.
async function offered(engine, wanted) {
  const end = performance.now() + 30000;
  for (;;) {
    const { list } = await native('/api/engines');
    const exits = list.find((one) => one.engine === engine)?.exits.map(({ exit }) => exit) ?? [];
    if (exits.length === wanted) return exits;
    assert(performance.now() < end, `${exits.length} exits offer ${engine}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

// A page that is a client, which knows of an exit for `engine`.
async function seeker(engine) {
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

const says = (page, selector, words) => page.waitForFunction((selector, words) =>
  document.querySelector(selector)?.textContent.includes(words), { timeout: 30000, polling: 50 }, selector, words);

for (const browser of Object.keys(BROWSERS)) {
  const address = browser === 'firefox' ? elsewhere() : undefined;

  describe(`a tab of ${browser} as an exit for searches`, { skip: unreachable(browser, address) }, () => {
    before(() => start(browser, address), { timeout: 600000 });
    after(end);

    test('offers nothing and answers nothing until it is chosen', deadline, async () => {
      const { page, close } = await open('/volunteer');
      await page.waitForSelector('#exit:not([hidden])');
      assert.deepEqual(await page.$$eval('#exit-form input', (all) => all.map((box) => [box.name, box.checked])),
        [[(await native('/api/engines')).list[0].engine, false], ['only-tabs', false], ['closed', false]]);
      await page.click('#switch');
      await page.waitForSelector('#power[data-phase="reachable"]', { timeout: 30000 });
      // A tab that came later is listed, so this one is.
      const tab = await volunteer({ searchEngines: [{ name: 'later', description: described('later', `${odd.at}/later?q={searchTerms}`) }] });
      await offered('later', 1);
      await offered('only-tabs', 0);
      await tab.close();
      const { error } = await native('/api/search', { terms: TERMS, engine: 'only-tabs' });
      assert.match(error, /no exit of this network offers this engine/);
      assert.equal(await page.$eval('#exit-now', (one) => one.textContent), 'off');
      await close();
    });

    test('answers a native client and a page by a real engine, once its box is ticked, and it was that tab', deadline, async () => {
      const { page, close } = await open('/volunteer');
      await page.waitForSelector('#exit:not([hidden])');
      await page.click('#exit summary');
      await page.click('input[name=only-tabs]');
      await page.click('input[name=closed]');
      await page.click('#switch');
      await says(page, 'label:has([name=only-tabs]) + p', 'You are querying it for others');
      await says(page, 'label:has([name=closed]) + p', 'doesn\'t allow that');
      await screenshots(page, browser, 'exit');

      const [exit] = await offered('only-tabs', 1);
      await offered('closed', 0);
      const found = await native('/api/search', { terms: TERMS, engine: 'only-tabs' });
      assert.equal(found.status, 200, JSON.stringify(found));
      assert.equal(found.path.length, 3);
      assert.equal(found.path[2].relay, exit);
      const direct = await (await fetch(`${kiwixAt}/search?format=xml&pattern=${TERMS}&pageLength=10&start=1`)).text();
      const titles = [...direct.matchAll(/<item>\s*<title>(.*?)<\/title>/g)].map(([, title]) => title);
      assert.deepEqual(found.results.map(({ title }) => title), titles.map((title) => title.replaceAll('&lt;', '<').replaceAll('&gt;', '>')));
      assert(found.results.every(({ link }) => link.startsWith(kiwixAt)));
      assert(found.more && found.total > 10);

      const client = await seeker('only-tabs');
      const seen = await client.search({ terms: TERMS, engine: 'only-tabs' });
      assert.deepEqual(seen.results, found.results.map(({ title, link, snippet }) => ({ title, link, snippet })));
      assert.deepEqual(seen.path.map(({ volunteer }) => volunteer), [false, false, true]);
      assert(seen.path[2].relay.startsWith(exit));
      const second = await client.search({ terms: TERMS, engine: 'only-tabs', page: 2 });
      assert.notDeepEqual(second.results, seen.results);
      await client.close();
      await says(page, '#searches', '3');

      // Nothing that was asked can be read in the page any more.
      assert.deepEqual(await page.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name)), []);

      // The page fetches from its engines and from nobody else.
      const tried = await page.evaluate((...urls) => Promise.all(urls.map((url) =>
        fetch(url).then(() => 'answered', ({ name }) => name))), `${other.at}/from-the-page`, `${kiwixAt}/`);
      assert.deepEqual(tried, ['TypeError', 'answered']);
      assert.deepEqual(strayed, []);

      // What was chosen stays so, and what is chosen no more is offered no more.
      await page.reload();
      await says(page, 'label:has([name=only-tabs]) + p', 'You are querying it for others');
      await offered('only-tabs', 1);
      await page.$eval('input[name=only-tabs]', (box) => box.click());
      await offered('only-tabs', 0);
      await says(page, '#exit-now', 'closed');

      // One that is called the same and is somewhere else has not been chosen.
      await says(page, 'label:has([name=closed])', new URL(odd.at).host);
      await page.evaluate(() => {
        const kept = JSON.parse(localStorage.getItem('umbel-volunteer'));
        kept.limits.searchEngines[0].origins = ['https://engine.example'];
        localStorage.setItem('umbel-volunteer', JSON.stringify(kept));
      });
      await page.reload();
      await says(page, 'label:has([name=closed]) + p', 'You had chosen an engine of this name at engine.example');
      assert.equal(await page.$eval('input[name=closed]', (box) => box.checked), false);
      await says(page, '#exit-now', 'off');
      await close();
    });

    test('says of each engine that misbehaves what is wrong, and offers none of them', deadline, async () => {
      const words = {
        closed: /Web pages can't read/, endless: /too long/, elsewhere: /another host/, wrong: /is malformed/,
        forbidden: /blocks this exit/, slow: /did not answer in time/,
      };
      const searchEngines = Object.keys(words).map((name) => ({ name, description: described(name, `${odd.at}/${name}?q={searchTerms}`) }));
      const tab = await volunteer({ searchEngines });
      const isSettled = ({ searchEngines }, count) => searchEngines.length === count && searchEngines.every(({ why }) => why);
      await tab.until(isSettled, searchEngines.length);
      for (const { name, offered, why } of (await tab.state()).searchEngines) {
        assert.equal(offered, false);
        assert.match(why, words[name], name);
      }
      assert.deepEqual(strayed, [], 'no redirect is followed');
      await tab.close();
    });

    test('tells clients what an engine does that turns on it, and holds its caps', deadline, async () => {
      const tab = await volunteer({ searchEngines: [{ name: 'terms', description: described('terms', `${odd.at}/terms?q={searchTerms}`) }] });
      const client = await seeker('terms');
      const answers = {
        endless: /too long/, elsewhere: /another host/, wrong: /is malformed/, laughs: /is malformed/, deep: /is malformed/,
        wide: /is malformed/, many: /is malformed/,
        broken: /reported a failure/, slow: /did not answer in time/, closed: /could not reach/,
      };
      for (const [terms, words] of Object.entries(answers)) {
        const { message } = await client.search({ terms, engine: 'terms' });
        assert.match(message, words, terms);
      }
      assert.deepEqual(strayed, [], 'no redirect is followed');
      // It is as good as before: it was tried again, and answered.
      const { results } = await client.search({ terms: 'plain', engine: 'terms', language: 'de' });
      assert.deepEqual(results, [{ title: 'A bold & short title', link: `${odd.at}/found`, snippet: 'Rc<T> words' }]);
      // Nothing of the volunteer goes along, whatever the engine has set.
      const { fields } = asked.findLast(({ terms }) => terms === 'plain');
      assert.deepEqual([fields.cookie, fields.referer], [undefined, undefined]);
      assert.match(fields['accept-language'], /^de,/);
      assert.equal((await tab.state()).searchEngines[0].offered, true);
      // Last, for it keeps this exit out for ten minutes.
      for (const terms of ['forbidden', 'plain']) {
        const { message } = await client.search({ terms, engine: 'terms' });
        assert.match(message, /blocks (this|every) exit/, terms);
      }
      await client.close();
      await tab.close();
    });

    test('asks no more for an engine that is chosen no more, and gives up what it was asking', deadline, async () => {
      const engine = (name) => ({ name, description: described(name, `${odd.at}/${name}?q={searchTerms}`) });
      const trial = hold('/a-slow', 'test');
      const tab = await volunteer({ searchEngines: ['a-slow', 'b-next'].map(engine) });
      await soon(trial.come, 'a trial');
      const choose = (...names) => tab.page.evaluate((searchEngines) => globalThis.tab.setLimits({ searchEngines }), names.map(engine));
      await choose('c-good');
      assert.equal(await soon(trial.left, 'the end of the trial'), false);
      await tab.until((state) => state.searchEngines[0]?.offered);
      assert(!asked.some(({ path }) => path === '/b-next'), 'one that is chosen no more is not tried');

      const client = await seeker('c-good');
      const query = hold('/c-good', 'held');
      const answer = client.search({ terms: 'held', engine: 'c-good' });
      await soon(query.come, 'the question');
      await choose();
      assert.equal(await soon(query.left, 'the end of the question'), false);
      assert.match((await answer).message, /no longer offers this engine/);
      await client.close();
      await tab.close();
    });

    test('answers what it was asked before it is turned off, and takes nothing more', deadline, async () => {
      const tab = await volunteer({ searchEngines: [{ name: 'drains', description: described('drains', `${odd.at}/drains?q={searchTerms}`) }] });
      const client = await seeker('drains');
      const query = hold('/drains', 'held');
      const answer = client.search({ terms: 'held', engine: 'drains' });
      await soon(query.come, 'the question');
      await tab.page.evaluate(() => void (globalThis.stopped = globalThis.tab.stop()));
      const { message } = await client.search({ terms: 'late', engine: 'drains' });
      assert(message);
      assert(!asked.some(({ terms }) => terms === 'late'));
      query.answer();
      assert.equal((await answer).results?.length, 1);
      // Whoever turns it off once more waits for the same.
      assert(await tab.page.evaluate(() => globalThis.tab.stop() === globalThis.stopped));
      await tab.page.evaluate(() => globalThis.stopped);
      await client.close();
      await tab.close();
    });

    test('reads feeds and JSON as exits do', deadline, async () => {
      const engine = ([name, { media, more = '' }]) => ({ name, description: described(name, `${odd.at}/${name}?q={searchTerms}`)
        .replace('application/rss+xml', media).replace('</Open', `${more}</Open`) });
      const tab = await volunteer({ searchEngines: Object.entries(FORMS).map(engine) });
      for (const [name, { results }] of Object.entries(FORMS)) {
        const client = await seeker(name);
        const expected = results.map(([title, link, snippet]) => ({ title, link: link.replace(/^\//, `${odd.at}/`), snippet }));
        assert.deepEqual((await client.search({ terms: TERMS, engine: name })).results, expected, name);
        await client.close();
      }
      // What engines say counts, as what is passed on.
      await tab.until((state, least) => state.bytesTotal > least, LONG);
      await tab.close();
    });

    test('refuses what is no engine that a tab can ask', deadline, async () => {
      const { page, close } = await open('/volunteer');
      const html = described('html', 'https://engine.example/?q={searchTerms}').replace('application/rss+xml', 'text/html')
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
