// The search page of a real client, over a real overlay, in stock browsers.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { BROWSERS, launch } from './browsers.js';
import { screenshots } from './screenshots.js';
import { testnet } from './testnet.js';
import { serve } from './through.js';

const withTimeout = { timeout: 60000 };
// Terms with more than one page of results in either engine of a testnet.
const TERMS = 'message';

let overlay, otherSite;

before(async () => {
  overlay = await testnet();
  // A page of another site in the same browser.
  otherSite = await serve((_, response) => {
    response.setHeader('content-type', 'text/html');
    response.end(`<!doctype html><title>Stranger</title>
      <iframe src="${overlay.page}/search?q=framed"></iframe>
      <form action="${overlay.page}/search"><input name="q" value="forged"><button>Go</button></form>`);
  });
}, { timeout: 600000 });

after(async () => {
  otherSite?.stop();
  await overlay?.stop();
});

for (const browser of Object.keys(BROWSERS)) {
  describe(browser, () => {
    let driver;

    before(async () => {
      driver = await launch(browser);
    }, { timeout: 120000 });

    after(() => driver?.close());

    // A new page, and the URLs of its requests.
    async function open(path, { script = true } = {}) {
      const page = await driver.newPage();
      if (!script) await page.setJavaScriptEnabled(false);
      const requested = [];
      // Images and fonts of the browser itself have data URLs.
      page.on('request', (request) => request.url().startsWith('data:') || requested.push(request.url()));
      if (path) await page.goto(overlay.page + path, { waitUntil: 'load' });
      return { page, requested };
    }

    async function search(page, terms) {
      await page.type('#q', terms);
      await Promise.all([page.waitForNavigation({ waitUntil: 'load' }), page.keyboard.press('Enter')]);
      await page.waitForSelector('.results li');
    }

    async function follow(page, selector) {
      await Promise.all([page.waitForNavigation({ waitUntil: 'load' }), page.click(selector)]);
    }

    const texts = (page, selector) => page.$$eval(selector, (all) => all.map((one) => one.textContent.trim()));

    function assertStayed(requested) {
      assert(requested.length > 0);
      assert.deepEqual(requested.filter((url) => !url.startsWith(`${overlay.page}/`)), []);
    }

    test('searches, shows the path, turns pages and reads a result, with requests to the client only', withTimeout, async () => {
      const { page, requested } = await open('/');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'q', 'the box has the focus');
      await screenshots(page, browser, 'home');
      await search(page, TERMS);
      await screenshots(page, browser, 'results');
      const first = await texts(page, '.results h2');
      assert(first.length > 0);
      const hops = await texts(page, '.route li');
      assert.equal(hops.length, 5, hops.join('\n'));
      for (const words of ['This computer', 'First relay', 'Middle relay', 'Exit']) {
        assert(hops.some((line) => line.startsWith(words)), words);
      }
      assert(hops.slice(1, 4).every((line) => /\(\d+(\.\d+)? m?s\)/.test(line)), 'each relay with its time');
      assert(await page.$('a[rel=next]'), 'there is a next page');
      await follow(page, 'a[rel=next]');
      const second = await texts(page, '.results h2');
      assert(second.length > 0);
      assert.notDeepEqual(second, first);
      await follow(page, 'a[rel=prev]');
      assert.deepEqual(await texts(page, '.results h2'), first);
      await follow(page, '.results h2 a');
      assert(page.url().startsWith(`${overlay.page}/read?url=`), page.url());
      await screenshots(page, browser, 'reader');
      const [bar] = await texts(page, '.bar');
      assert(bar.includes('Reader view'), bar);
      assert((await texts(page, '.foreign'))[0].length > 100);
      await follow(page, '.brand');
      assert.equal(await page.$$eval('.home', (all) => all.length), 1, 'the home page follows the reader view');
      assertStayed(requested);
      await page.close();
    });

    test('moves by keys between box, results and pages', withTimeout, async () => {
      const { page } = await open('/');
      await search(page, TERMS);
      const focused = () => page.evaluate(() => document.activeElement.textContent.trim());
      const titles = await texts(page, '.results h2 a');
      await page.evaluate(() => document.activeElement.blur());
      await page.keyboard.press('j');
      assert.equal(await focused(), titles[0]);
      await page.keyboard.press('j');
      await page.keyboard.press('k');
      assert.equal(await focused(), titles[0]);
      await page.keyboard.press('/');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'q');
      await page.keyboard.type('now');
      assert.equal(await page.$eval('#q', (box) => box.value), 'now', 'letters typed in the box are text');
      await page.evaluate(() => document.activeElement.blur());
      await Promise.all([page.waitForNavigation({ waitUntil: 'load' }), page.keyboard.press('n')]);
      assert(page.url().includes('page=2'), page.url());
      await page.close();
    });

    // Firefox's driver can't turn scripts off.
    if (browser === 'chrome') {
      test('needs no script', withTimeout, async () => {
        const { page, requested } = await open('/', { script: false });
        await search(page, TERMS);
        assert((await texts(page, '.results h2')).length > 0);
        assertStayed(requested);
        await page.close();
      });
    }

    test('accepts queries in Japanese and Arabic, and rejects control characters', withTimeout, async () => {
      for (const terms of ['所有権', 'الملكية']) {
        const { page } = await open(`/search?q=${encodeURIComponent(terms)}`);
        assert.equal(await page.$eval('#q', (box) => box.value), terms);
        assert.equal((await texts(page, '.count')).length, 1);
        await page.close();
      }
      const { page } = await open('/search?q=a%07b');
      assert((await texts(page, 'main'))[0].includes('control characters'));
      await screenshots(page, browser, 'error');
      await page.close();
    });

    test('answers no request of another site', withTimeout, async () => {
      const { page } = await open();
      await page.goto(otherSite.url.replace('127.0.0.1', 'localhost'), { waitUntil: 'load' });
      const outcome = await page.evaluate(async (own) => {
        const tries = [
          fetch(`${own}/search?q=stolen`),
          fetch(`${own}/search?q=stolen`, { mode: 'no-cors' }).then((answer) => answer.text()).then((text) => {
            if (text) throw new Error(text);
            return 'opaque';
          }),
          fetch(`${own}/api/search`, { method: 'POST', headers: { 'umbel-api': '1' }, body: '{"terms":"stolen"}' }),
        ];
        return (await Promise.allSettled(tries)).map(({ status, value }) => (value === 'opaque' ? value : status));
      }, overlay.page);
      assert.equal(outcome[0], 'rejected');
      assert(['opaque', 'rejected'].includes(outcome[1]), outcome[1]);
      assert.equal(outcome[2], 'rejected');
      const framed = page.frames().filter((frame) => frame !== page.mainFrame());
      assert(framed.length > 0);
      for (const frame of framed) {
        const shown = await frame.$$eval('.results li', (all) => all.length).catch(() => 0);
        assert.equal(shown, 0, 'the frame shows no results');
      }
      await follow(page, 'form button');
      assert.equal(await page.$('.results'), null);
      assert((await texts(page, 'body'))[0].includes('refused'));
      await page.close();
    });

    test('detects a browser that does not use the proxy, with requests to the client only', withTimeout, async () => {
      const { page, requested } = await open(`/leave?url=${encodeURIComponent('http://planted.example/only-for-you')}`);
      const check = await page.$eval('.check img', ({ naturalWidth, alt, src }) => ({ naturalWidth, alt, src }));
      assert.equal(check.naturalWidth, 0);
      assert(check.alt.startsWith('No'));
      assert.match(check.src, /^http:\/\/\[ff11:/);
      assertStayed(requested.filter((url) => url !== check.src));
      await screenshots(page, browser, 'leave');
      const links = await page.$$eval('a[href]', (all) => all.map((one) => one.href));
      assert.deepEqual(links.filter((link) => !link.startsWith(`${overlay.page}/`)), []);
      await page.close();
    });

    test('opens another site only after confirmation, without a referrer', withTimeout, async () => {
      const seen = [];
      const site = await serve((request, response) => {
        seen.push(request.headers);
        response.end('seen');
      });
      const target = `${site.url}/`;
      const { page } = await open(`/leave?url=${encodeURIComponent(target)}`);
      assert.equal(seen.length, 0);
      await follow(page, '.choices a[rel=noreferrer]');
      assert.equal(page.url(), target);
      assert.equal(seen[0].referer, undefined);
      await page.close();
      site.stop();
    });

    test('detects a browser that uses the proxy', withTimeout, async () => {
      const proxied = await launch(browser, { socks: overlay.socks });
      try {
        const page = await proxied.newPage();
        await page.goto(`${overlay.page}/leave?url=${encodeURIComponent('http://planted.example/')}`, { waitUntil: 'load' });
        assert(await page.$eval('.check img', ({ naturalWidth }) => naturalWidth) > 0);
        await screenshots(page, browser, 'leave-through');
      } finally {
        await proxied.close();
      }
    });
  });
}
