// The pages for browsers, over a real overlay: a page that is itself the client, and a tab that is a relay.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { nonLoopbackAddress, skipReason } from './addresses.js';
import { BROWSERS, launch } from './browsers.js';
import { screenshots } from './screenshots.js';
import { testnet } from './testnet.js';
import { serve } from './through.js';

const withTimeout = { timeout: 60000 };
// Terms with more than one page of results in the engine of a testnet.
const TERMS = 'message';

const HOSTILE = `<!doctype html><title>Hostile</title><body onload="hacked()"><h1 id="top">Hostile page</h1>
  <script>parent.document.title = 'owned'; top.location = 'http://127.0.0.1:1/script'</script>
  <img src="http://127.0.0.1:1/image" onerror="parent.document.title = 'owned'"><link rel="stylesheet" href="http://127.0.0.1:1/style">
  <iframe src="http://127.0.0.1:1/frame"></iframe><meta http-equiv="refresh" content="0;url=http://127.0.0.1:1/refresh">
  <form action="http://127.0.0.1:1/form"><button>Send</button></form>
  <p>Words. <a id="next" href="/next">On</a> <a id="bad" href="javascript:parent.document.title='owned'">Bad</a> <a href="#top">Up</a></p>
  ${'<div>'.repeat(3000)}deep${'</div>'.repeat(3000)}`;

let overlay, site;
const seen = [];

before(async () => {
  overlay = await testnet({ address: nonLoopbackAddress() });
  const { status } = await fetch(`${overlay.directory}/search`);
  assert.equal(status, 200, 'the program has no pages: `cargo xtask web` builds them');
  site = await serve((request, response) => {
    seen.push({ url: request.url, referer: request.headers.referer, agent: request.headers['user-agent'] });
    response.setHeader('content-type', 'text/html; charset=utf-8');
    if (request.url === '/badge') {
      return response.end(`<!doctype html><title>A site</title><h1>Words</h1><p id="around">Before
        <script src="${overlay.directory}/badge.js" async referrerpolicy="no-referrer"></script> after</p>
        <iframe src="${overlay.directory}/volunteer"></iframe>`);
    }
    return response.end(request.url === '/next' ? '<title>Next</title><p>The next page</p>' : HOSTILE);
  });
}, { timeout: 600000 });

after(async () => {
  site?.stop();
  await overlay?.stop();
});

for (const browser of Object.keys(BROWSERS)) {
  describe(browser, () => {
    const dialling = { ...withTimeout, skip: skipReason(browser, nonLoopbackAddress()) };
    let driver;

    before(async () => {
      driver = await launch(browser);
    }, { timeout: 120000 });

    after(() => driver?.close());

    // A page with separate storage, and the URLs of the requests of the page and its frames.
    async function open(path, prepare) {
      const context = await driver.createBrowserContext();
      const page = await context.newPage();
      const requested = [];
      page.on('request', (request) => request.url().startsWith('data:') || requested.push(request.url()));
      // Firefox reports the depth of the hostile page as an error.
      page.on('pageerror', ({ message }) => /tree is too deep/.test(message) || assert.fail(`the page threw ${message}`));
      await prepare?.(page);
      await page.goto(overlay.directory + path, { waitUntil: 'load' });
      return { page, requested, close: () => context.close() };
    }

    const texts = (page, selector) => page.$$eval(selector, (all) => all.map((element) => element.textContent.trim()));
    const waitForText = (page, selector, words, timeout = 30000) =>
      page.waitForFunction((selector, words) => document.querySelector(selector)?.textContent.includes(words), { timeout }, selector, words);

    function assertStayed(requested) {
      assert(requested.length > 0);
      assert.deepEqual(requested.filter((url) => !url.startsWith(`${overlay.directory}/`) && url !== 'about:srcdoc'), []);
    }

    async function search(page, terms) {
      await page.waitForSelector('#q');
      await page.type('#q', terms);
      await page.keyboard.press('Enter');
      await page.waitForSelector('.results li, main.words', { timeout: 30000 });
      assert.equal(await page.$('main.words'), null, (await texts(page, 'main')).join());
    }

    test('searches from the page itself, shows the path, turns pages and goes back without a new query', dialling, async () => {
      const { page, requested, close } = await open('/search');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'q', 'the box has the focus');
      await screenshots(page, browser, 'web-home');
      await search(page, TERMS);
      await screenshots(page, browser, 'web-results');
      const first = await texts(page, '.results h2');
      const hops = await texts(page, '.route li');
      assert.equal(hops.length, 5, hops.join('\n'));
      for (const words of ['This browser', 'First relay', 'Middle relay', 'Exit']) {
        assert(hops.some((line) => line.startsWith(words)), words);
      }
      assert(hops.slice(1, 4).every((line) => /\(\d+(\.\d+)? m?s\)/.test(line)), 'each relay with its time');
      const route = await page.$eval('.route summary small', (element) => element.textContent);
      await page.click('a[rel=next]');
      await waitForText(page, '.pages span', '');
      await page.waitForFunction((first) => document.querySelector('.results h2')?.textContent !== first, {}, first[0]);
      assert.notDeepEqual(await texts(page, '.results h2'), first);
      await page.goBack();
      await page.waitForFunction((first) => document.querySelector('.results h2')?.textContent === first, {}, first[0]);
      assert.equal(await page.$eval('.route summary small', (element) => element.textContent), route, 'the earlier answer is shown');
      assert.equal(page.url(), `${overlay.directory}/search`, 'the URL has no query');
      assert.equal(await page.title(), 'Umbel search');
      assertStayed(requested);
      await close();
    });

    test('reads a query from the fragment and removes it from the URL', dialling, async () => {
      const { page, requested, close } = await open(`/search#q=${TERMS}`);
      await page.waitForSelector('.results li', { timeout: 30000 });
      assert.equal(page.url(), `${overlay.directory}/search`);
      await page.reload();
      await page.waitForSelector('.results li', { timeout: 30000 });
      assertStayed(requested);
      await close();
    });

    test('moves by keys between box, results and pages', dialling, async () => {
      const { page, close } = await open(`/search#q=${TERMS}`);
      await page.waitForSelector('.results li', { timeout: 30000 });
      const focused = () => page.evaluate(() => document.activeElement.textContent.trim());
      const titles = await texts(page, '.results h2 a');
      await page.evaluate(() => document.activeElement.blur());
      await page.keyboard.press('j');
      assert.equal(await focused(), titles[0]);
      await page.keyboard.press('/');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'q');
      await page.evaluate(() => document.activeElement.blur());
      await page.keyboard.press('n');
      await waitForText(page, '.pages', 'Page 2');
      await close();
    });

    test('a hostile page in the reader view loads, runs and opens nothing, and its links open in the view', dialling, async () => {
      const before = seen.length;
      const { page, requested, close } = await open(`/search#read=${encodeURIComponent(`${site.url}/#x`)}`);
      await page.waitForSelector('iframe.reader', { timeout: 30000 });
      await waitForText(page, '.bar', 'fetched by an exit');
      await waitForText(page, '.warn', 'was not encrypted by');
      const frame = await (await page.$('iframe.reader')).contentFrame();
      await frame.waitForSelector('#page-next');
      assert.equal(await frame.$eval('h1', (element) => element.textContent), 'Hostile page');
      const left = await frame.$$eval('script, img, body link, iframe, body meta, form, [onload], [onerror]', (all) => all.length);
      assert.equal(left, 0);
      assert.equal(await frame.$('#page-bad'), null, 'a javascript: URL is removed');
      assert.equal(await page.title(), 'Umbel search');
      await frame.click('#page-next');
      await waitForText(page, '.title', 'Next');
      const since = seen.slice(before);
      assert(since.some(({ url }) => url === '/next'));
      assert(since.every(({ referer, agent }) => referer === undefined && !/chrom|firefox/i.test(agent ?? '')), 'the exit sent the requests');
      await page.goBack();
      await waitForText(page, '.title', 'Hostile');
      await screenshots(page, browser, 'web-reader');
      assertStayed(requested);
      await close();
    });

    test('opens another site only after confirmation, without a referrer', dialling, async () => {
      const { page, requested, close } = await open(`/search#q=${TERMS}`);
      await page.waitForSelector('.results li', { timeout: 30000 });
      await page.click('.aside button');
      await waitForText(page, 'h1', 'directly in your browser?');
      await screenshots(page, browser, 'web-leave');
      const links = await page.$$eval('a[href]', (all) => all.map((element) => element.href));
      assert.deepEqual(links.filter((link) => !link.startsWith(`${overlay.directory}/`)), []);
      assertStayed(requested);
      const popup = new Promise((resolve) => page.browserContext().once('targetcreated', resolve));
      await page.click('.choices .quiet');
      const opened = await (await popup).page();
      assert.deepEqual(await opened.evaluate(() => [window.opener, document.referrer]), [null, '']);
      await close();
    });

    const failures = [
      ['no-webrtc', 'can’t reach the relays', 'can’t reach the relays', (page) => page.evaluateOnNewDocument(() => delete globalThis.RTCPeerConnection)],
      ['clock', 'clock is wrong', 'clock', (page) => page.evaluateOnNewDocument(() => {
        const now = Date.now.bind(Date);
        // Further than the validity of a consensus.
        Date.now = () => now() - 3 * 24 * 3600 * 1000;
      })],
      ['network', 'network can’t be reached', 'directory can\'t be reached', (page) => interceptDirectory(page, (request) => request.abort('connectionrefused'))],
      ['consensus', 'is not valid', 'answer is not a valid document, so it is not used', (page) => interceptDirectory(page, (request) =>
        request.respond({ status: 200, contentType: 'application/x-protobuf', body: 'no consensus' }))],
    ];

    // Answers all requests to the directory's API by `answer`.
    async function interceptDirectory(page, answer) {
      await page.setRequestInterception(true);
      page.on('request', (request) => (request.url().includes('/v1/') ? answer(request) : request.continue()));
    }

    for (const [name, searchText, volunteerText, prepare] of failures) {
      test(`${name}: both pages report the failure and send nothing`, withTimeout, async () => {
        for (const [path, place, words] of [['/search', '.warn', searchText], ['/volunteer', '#power', volunteerText]]) {
          const { page, requested, close } = await open(path, prepare);
          if (path === '/volunteer') await page.click('#switch');
          await waitForText(page, place, words);
          await screenshots(page, browser, `web-${name}${path.replace('/', '-')}`);
          assertStayed(requested);
          await close();
        }
      });
    }

    test('one switch makes the tab a relay, also after a reload, until it is turned off', dialling, async () => {
      const { page, requested, close } = await open('/volunteer');
      assert.deepEqual(await texts(page, '#state'), ['Off']);
      await screenshots(page, browser, 'web-off');
      await page.focus('#switch');
      await page.keyboard.press(' ');
      await waitForText(page, '#why', 'gateway');
      await waitForText(page, '#state', 'On');
      assert.equal(await page.$eval('#switch', (element) => element.getAttribute('aria-checked')), 'true');
      await screenshots(page, browser, 'web-on');
      await page.reload();
      await waitForText(page, '#why', 'gateway');
      await page.click('#switch');
      await waitForText(page, '#state', 'Off');
      await page.reload();
      await waitForText(page, '#state', 'Off');
      await page.$$eval('details', (all) => all.forEach((element) => (element.open = true)));
      await screenshots(page, browser, 'web-open');
      assertStayed(requested);
      await close();
    });

    test('a second tab reports that it waits, and starts when the first is closed', dialling, async () => {
      const { page, close } = await open('/volunteer');
      await page.click('#switch');
      await waitForText(page, '#why', 'gateway');
      const second = await page.browserContext().newPage();
      await second.goto(`${overlay.directory}/volunteer`, { waitUntil: 'load' });
      await waitForText(second, '#state', 'Paused');
      await waitForText(second, '#why', 'Another tab');
      await screenshots(second, browser, 'web-paused');
      await page.close();
      await waitForText(second, '#state', 'On');
      await close();
    });

    test('a volunteer reports that no relay can be reached', dialling, async () => {
      const { page, requested, close } = await open('/volunteer', (page) => page.evaluateOnNewDocument(() => {
        // Dials never complete, as behind a firewall that blocks UDP.
        RTCPeerConnection.prototype.setRemoteDescription = () => new Promise(() => undefined);
      }));
      await page.click('#switch');
      // The time limit for the first gateway is 25 s.
      await waitForText(page, '#state', 'not reachable', 50000);
      await screenshots(page, browser, 'web-unreachable');
      assertStayed(requested);
      await close();
    });

    const withoutStorage = {
      denies: (page) => page.evaluateOnNewDocument(() => {
        IDBFactory.prototype.open = () => {
          throw new DOMException('denied', 'SecurityError');
        };
        Object.defineProperty(globalThis, 'localStorage', {
          get: () => {
            throw new DOMException('denied', 'SecurityError');
          },
        });
      }),
      'has no room for': (page) => page.evaluateOnNewDocument(() => {
        const full = () => {
          throw new DOMException('full', 'QuotaExceededError');
        };
        IDBObjectStore.prototype.put = full;
        Storage.prototype.setItem = full;
      }),
    };

    for (const [how, prepare] of Object.entries(withoutStorage)) {
      test(`a browser that ${how} storage volunteers and searches, and reports the lack of storage`, dialling, async () => {
        const volunteer = await open('/volunteer', prepare);
        await volunteer.page.click('#switch');
        await waitForText(volunteer.page, '#why', 'stores nothing');
        assertStayed(volunteer.requested);
        await volunteer.close();
        const { page, requested, close } = await open(`/search#q=${TERMS}`, prepare);
        await page.waitForSelector('.results li', { timeout: 30000 });
        assertStayed(requested);
        await close();
      });
    }

    // Whether one of twelve searches uses the volunteer. Each search has a separate circuit, and only some circuits use the volunteer.
    async function usesVolunteer(page) {
      await search(page, TERMS);
      for (let attempt = 1; attempt <= 12; attempt++) {
        if ((await texts(page, '.route li'))[2].includes('volunteer')) return true;
        // The terms differ each time, because the page shows the answer to an earlier query again without a new search.
        await page.$eval('.route', (element) => (element.id = 'before'));
        await page.type('#q', ` ${attempt}`);
        await page.keyboard.press('Enter');
        await page.waitForSelector('.route:not(#before)', { timeout: 30000 });
      }
      return false;
    }

    test('one tab searches through another tab, which shows its forwarded bytes', { ...dialling, timeout: 120000 }, async () => {
      const volunteerTab = await open('/volunteer');
      await volunteerTab.page.click('#switch');
      await waitForText(volunteerTab.page, '#why', 'gateway');
      let searchTab = await open('/search');
      // Each page has its own guard, which is not necessarily a gateway of the volunteer.
      for (let opened = 1; !(await usesVolunteer(searchTab.page)); opened++) {
        assert(opened < 10, 'no search used the volunteer');
        await searchTab.close();
        searchTab = await open('/search');
      }
      await screenshots(searchTab.page, browser, 'web-by-volunteer');
      await volunteerTab.page.bringToFront();
      await volunteerTab.page.waitForFunction(() => document.querySelector('#total').textContent !== '0 bytes', { timeout: 10000 });
      await screenshots(volunteerTab.page, browser, 'web-helping');
      assertStayed(volunteerTab.requested);
      assertStayed(searchTab.requested);
      await searchTab.close();
      await volunteerTab.close();
    });

    test('a chosen limit persists', withTimeout, async () => {
      const { page, close } = await open('/volunteer');
      await page.click('#limits summary');
      await page.select('select[name=rate]', '500000');
      await page.select('select[name=total]', '');
      await page.reload();
      assert.equal(await page.$eval('select[name=rate]', (element) => element.value), '500000');
      assert.match((await texts(page, '#limits-now'))[0], /^at most 500 kB\/s/);
      assert.deepEqual(await texts(page, '#exit-now'), ['off']);
      await close();
    });

    test('a program of another site searches and sends delegated requests by the library', dialling, async () => {
      const context = await driver.createBrowserContext();
      const page = await context.newPage();
      await page.goto(`${site.url}/next`, { waitUntil: 'load' });
      const found = await page.evaluate(async (directory, terms, url) => {
        const { connect, UmbelError } = await import(`${directory}/umbel.js`);
        const umbel = await connect({ network: `${directory}/umbel.json` });
        const { results, path } = await umbel.search({ terms });
        const { body } = await umbel.request({ url });
        const refused = await umbel.search({ terms: '' }).catch((error) => error);
        // The second module is loaded from the directory too. No server listens on this port.
        const unanswered = await umbel.fetch('https://127.0.0.1:1/').catch((error) => error.message);
        const outcome = { results: results.length, hops: path.length, text: new TextDecoder().decode(body), typed: refused instanceof UmbelError, unanswered };
        umbel.close();
        return outcome;
      }, overlay.directory, TERMS, `${site.url}/next`);
      assert(found.results > 0);
      assert.equal(found.hops, 3);
      assert(found.text.includes('The next page'));
      assert(found.typed);
      assert.match(found.unanswered, /refused the connection/);
      await context.close();
    });

    test('the badge loads nothing before a click, and the page that it opens can’t be framed', withTimeout, async () => {
      const context = await driver.createBrowserContext();
      const page = await context.newPage();
      const requested = [];
      page.on('request', (request) => requested.push({ url: request.url(), referer: request.headers().referer }));
      await page.goto(`${site.url}/badge`, { waitUntil: 'load' });
      await page.waitForSelector('umbel-badge');
      assert.equal((await texts(page, '#around'))[0].replace(/\s+/g, ' '), 'Before after', 'the site is unchanged');
      const ours = requested.filter(({ url }) => url.startsWith(overlay.directory));
      assert.deepEqual(ours.map(({ url }) => url.slice(overlay.directory.length)).sort(), ['/badge.js', '/volunteer'], 'the frame loads the volunteer’s page');
      assert.equal(ours.find(({ url }) => url.endsWith('badge.js')).referer ?? '', '');
      const [framed] = page.frames().filter((frame) => frame !== page.mainFrame());
      assert.equal(await framed.$$eval('#switch', (all) => all.length).catch(() => 0), 0, 'the frame shows no page');
      const popup = new Promise((resolve) => context.once('targetcreated', resolve));
      await page.click('umbel-badge');
      const opened = await (await popup).page();
      await opened.waitForSelector('#switch');
      assert.equal(opened.url(), `${overlay.directory}/volunteer`);
      assert.deepEqual(await opened.evaluate(() => [window.opener, document.referrer]), [null, '']);
      await context.close();
    });
  });
}
