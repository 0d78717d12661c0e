// A tab that searches for others: over a real engine that nobody else offers, and over engines that misbehave.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { homedir, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';

import { launch } from './browsers.js';
import { testnet } from './testnet.js';

const deadline = { timeout: 120000 };
const TERMS = 'message';
const BOOK = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'umbel-tools/rust-book/rust-book.zim');
const pictures = process.env.UMBEL_PICTURES;

const described = (name, template) => `<?xml version="1.0" encoding="UTF-8"?>
  <OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/" xmlns:umbel="urn:umbel:engine">
    <ShortName>Engine ${name}</ShortName><umbel:engine name="${name}"/>
    <Url type="application/rss+xml" template="${template.replaceAll('&', '&amp;')}"/>
  </OpenSearchDescription>`;

const RSS = `<?xml version="1.0"?><rss version="2.0"><channel><item><title>A <![CDATA[<b>bold</b>]]> &amp;amp; &lt;i&gt;short&lt;/i&gt; title</title>
  <link>/found?utm_source=x</link><description>Rc&amp;lt;T&amp;gt; &lt;script&gt;no()&lt;/script&gt;words</description></item></channel></rss>`;
// For HTML's entities and elements in JSON.
const JSON_ANSWER = { results: [{ url: '/json?fbclid=1', title: 'Caf&eacute; Vec<String>', content: 'a<br>b' }, { url: 'javascript:x', title: 'bad' }] };

let overlay, driver, folder, kiwix, kiwixAt, odd, oddAt, elsewhere, elsewhereAt;
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

async function serve(handler) {
  const server = createServer(handler);
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return [server, `http://127.0.0.1:${server.address().port}`];
}

// A second Kiwix, of which the exits of the testnet know nothing.
async function startKiwix() {
  assert(existsSync(BOOK), '`cargo xtask book` makes the book that is searched');
  const [server, at] = await serve(() => undefined);
  await new Promise((resolve) => server.close(resolve));
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
  const url = new URL(request.url, oddAt);
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
    case 'elsewhere': return response.writeHead(302, { location: `${elsewhereAt}/stolen${url.search}` }).end();
    case 'wrong': return response.end('<!doctype html><p>Hello');
    case 'laughs': return response.end('<!DOCTYPE rss [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><rss><channel><title>&b;</title></channel></rss>');
    case 'deep': return response.end(`<rss>${'<a>'.repeat(2000)}${'</a>'.repeat(2000)}</rss>`);
    case 'wide': return response.end(`<rss><a${Array.from({ length: 20000 }, (_, n) => ` a${n}=""`).join('')}/></rss>`);
    case 'many': return response.end(`<rss>${'<a/>'.repeat(60000)}</rss>`);
    case 'forbidden': return response.writeHead(403).end('no');
    case 'busy': return response.writeHead(429).end('no');
    case 'broken': return response.writeHead(500).end('no');
    case 'json': return response.end(JSON.stringify(JSON_ANSWER));
    default: return response.end(RSS);
  }
}

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'umbel-exit-'));
  [kiwix, kiwixAt] = await startKiwix();
  [odd, oddAt] = await serve(misbehave);
  [elsewhere, elsewhereAt] = await serve((request, response) => {
    strayed.push(request.url);
    response.setHeader('access-control-allow-origin', '*');
    response.end(RSS);
  });
  const file = (name, template) => {
    writeFileSync(join(folder, `${name}.xml`), described(name, template));
    return `--web-engine=${join(folder, `${name}.xml`)}`;
  };
  overlay = await testnet({ options: [
    file('only-tabs', `${kiwixAt}/search?format=xml&pattern={searchTerms}&pageLength={count}&start={startIndex}`),
    file('closed', `${oddAt}/closed?q={searchTerms}`),
  ] });
  driver = await launch('chrome');
}, { timeout: 600000 });

after(async () => {
  await driver?.close();
  await overlay?.stop();
  kiwix?.kill('SIGTERM');
  for (const server of [odd, elsewhere]) {
    server?.closeAllConnections();
    server?.close();
  }
  if (folder) rmSync(folder, { recursive: true, force: true });
});

async function open(path) {
  const context = await driver.createBrowserContext();
  const page = await context.newPage();
  await page.goto(overlay.directory + path, { waitUntil: 'load' });
  return { page, close: () => context.close() };
}

// A tab that volunteers by the library.
async function volunteer(limits) {
  const { page, close } = await open('/volunteer');
  await page.evaluate(async (limits) => {
    const { volunteer } = await import('/umbel.js');
    globalThis.tab = await volunteer({ network: '/umbel.json', limits, onstate: () => undefined });
  }, limits);
  await page.waitForFunction(() => globalThis.tab.state.phase === 'reachable', { timeout: 30000, polling: 50 });
  const until = (test, ...given) => page.waitForFunction(test, { timeout: 30000, polling: 50 }, ...given);
  return { page, close, until, state: () => page.evaluate(() => globalThis.tab.state) };
}

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

async function picture(page, name) {
  if (!pictures) return;
  mkdirSync(pictures, { recursive: true });
  for (const [width, height] of [[1200, 900], [390, 844]]) {
    for (const value of ['light', 'dark']) {
      await page.setViewport({ width, height });
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
      await page.screenshot({ path: `${pictures}/chrome-${name}-${value}-${width}.png`, fullPage: true });
    }
  }
}

const says = (page, selector, words) => page.waitForFunction((selector, words) =>
  document.querySelector(selector)?.textContent.includes(words), { timeout: 30000, polling: 50 }, selector, words);

describe('a tab as an exit for searches', () => {
  test('offers nothing and answers nothing until it is chosen', deadline, async () => {
    const { page, close } = await open('/volunteer');
    await page.waitForSelector('#exit:not([hidden])');
    assert.deepEqual(await page.$$eval('#exit-form input', (all) => all.map((box) => [box.name, box.checked])),
      [[(await native('/api/engines')).list[0].engine, false], ['only-tabs', false], ['closed', false]]);
    await page.click('#switch');
    await says(page, '#why', 'gateway');
    await offered('only-tabs', 0);
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
    await says(page, 'label:has([name=only-tabs]) + p', 'You are asking it for others');
    await says(page, 'label:has([name=closed]) + p', 'doesn\'t allow that');
    await picture(page, 'exit');

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

    // The page speaks to its engines and nobody else, whatever runs in it.
    const [stranger, at] = await serve((request, response) => {
      strayed.push(request.url);
      response.setHeader('access-control-allow-origin', '*');
      response.end();
    });
    const tried = await page.evaluate((...urls) => Promise.all(urls.map((url) =>
      fetch(url).then(() => 'answered', ({ name }) => name))), `${at}/from-the-page`, `${kiwixAt}/`);
    assert.deepEqual(tried, ['TypeError', 'answered']);
    assert.deepEqual(strayed, []);
    stranger.close();

    // What was chosen stays so, and what is chosen no more is offered no more.
    await page.reload();
    await says(page, 'label:has([name=only-tabs]) + p', 'You are asking it for others');
    await offered('only-tabs', 1);
    await page.$eval('input[name=only-tabs]', (box) => box.click());
    await offered('only-tabs', 0);
    await says(page, '#exit-now', 'closed');
    await close();
  });

  test('says of each engine that misbehaves what is wrong, and offers none of them', deadline, async () => {
    const words = {
      closed: /can't be read from a web page/, endless: /too long/, elsewhere: /another host/, wrong: /could not be read/,
      forbidden: /keeps this exit out/, slow: /did not answer in time/,
    };
    const searchEngines = Object.keys(words).map((name) => ({ name, description: described(name, `${oddAt}/${name}?q={searchTerms}`) }));
    const tab = await volunteer({ searchEngines });
    await tab.until(() => globalThis.tab.state.searchEngines.every(({ why }) => why));
    for (const { name, offered, why } of (await tab.state()).searchEngines) {
      assert.equal(offered, false);
      assert.match(why, words[name], name);
    }
    assert.deepEqual(strayed, [], 'no redirect is followed');
    await tab.close();
  });

  test('tells clients what an engine does that turns on it, and holds its caps', deadline, async () => {
    const tab = await volunteer({ searchEngines: [{ name: 'terms', description: described('terms', `${oddAt}/terms?q={searchTerms}`) }] });
    const client = await seeker('terms');
    const answers = {
      endless: /too long/, elsewhere: /another host/, wrong: /could not be read/, laughs: /could not be read/, deep: /could not be read/,
      wide: /could not be read/, many: /could not be read/,
      broken: /reported a failure/, slow: /did not answer in time/, closed: /could not reach/,
    };
    for (const [terms, words] of Object.entries(answers)) {
      const { message } = await client.search({ terms, engine: 'terms' });
      assert.match(message, words, terms);
    }
    assert.deepEqual(strayed, [], 'no redirect is followed');
    // It is as good as before: it was tried again, and answered.
    const { results } = await client.search({ terms: 'plain', engine: 'terms', language: 'de' });
    assert.deepEqual(results, [{ title: 'A bold & short title', link: `${oddAt}/found`, snippet: 'Rc<T> words' }]);
    // Nothing of the volunteer goes along, whatever the engine has set.
    const { fields } = asked.findLast(({ terms }) => terms === 'plain');
    assert.deepEqual([fields.cookie, fields.referer], [undefined, undefined]);
    assert.match(fields['accept-language'], /^de,/);
    assert.equal((await tab.state()).searchEngines[0].offered, true);
    // Last, for it keeps this exit out for ten minutes.
    for (const terms of ['forbidden', 'plain']) {
      const { message } = await client.search({ terms, engine: 'terms' });
      assert.match(message, /keeps (this|out every) exit/, terms);
    }
    await client.close();
    await tab.close();
  });

  test('asks no more for an engine that is chosen no more, and gives up what it was asking', deadline, async () => {
    const engine = (name) => ({ name, description: described(name, `${oddAt}/${name}?q={searchTerms}`) });
    const trial = hold('/a-slow', 'test');
    const tab = await volunteer({ searchEngines: ['a-slow', 'b-next'].map(engine) });
    await soon(trial.come, 'a trial');
    const choose = (...names) => tab.page.evaluate((searchEngines) => globalThis.tab.setLimits({ searchEngines }), names.map(engine));
    await choose('c-good');
    assert.equal(await soon(trial.left, 'the end of the trial'), false);
    await tab.until(() => globalThis.tab.state.searchEngines[0]?.offered);
    assert(!asked.some(({ path }) => path === '/b-next'), 'one that is chosen no more is not tried');

    const client = await seeker('c-good');
    const query = hold('/c-good', 'held');
    const answer = client.search({ terms: 'held', engine: 'c-good' });
    await soon(query.come, 'the question');
    await choose();
    assert.equal(await soon(query.left, 'the end of the question'), false);
    assert.match((await answer).message, /doesn't offer this engine any more/);
    await client.close();
    await tab.close();
  });

  test('answers what it was asked before it is turned off, and takes nothing more', deadline, async () => {
    const tab = await volunteer({ searchEngines: [{ name: 'drains', description: described('drains', `${oddAt}/drains?q={searchTerms}`) }] });
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

  test('reads JSON as exits do', deadline, async () => {
    const description = described('json', `${oddAt}/json?q={searchTerms}`).replace('application/rss+xml', 'application/json');
    const tab = await volunteer({ searchEngines: [{ name: 'json', description }] });
    const client = await seeker('json');
    const { results } = await client.search({ terms: TERMS, engine: 'json' });
    assert.deepEqual(results, [{ title: 'Café Vec<String>', link: `${oddAt}/json`, snippet: 'a b' }]);
    await client.close();
    await tab.close();
  });

  test('refuses what is no engine that a tab can ask', deadline, async () => {
    const { page, close } = await open('/volunteer');
    const html = described('html', 'https://engine.example/?q={searchTerms}').replace('application/rss+xml', 'text/html')
      .replace('</Open', '<umbel:results type="text/html" select="p" title="b" link="a"/></Open');
    const cases = [
      ['unknown', /names no search engine/], [{ name: 'No name', description: '' }, /no name for a search engine/],
      [{ name: 'x', description: '<a>' }, /no well-formed XML/], [{ name: 'x', description: '<a/>' }, /no OpenSearch/],
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
