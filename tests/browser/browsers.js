// The tested browsers: their programs, and their start.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';

import puppeteer from 'puppeteer-core';

export const BROWSERS = {
  chrome: { variable: 'UMBEL_CHROMIUM', paths: ['/usr/bin/chromium'], args: ['--no-sandbox'] },
  firefox: { variable: 'UMBEL_FIREFOX', paths: ['/usr/bin/firefox-esr', '/usr/bin/firefox'], args: [] },
};

// The program of a browser.
export function program(browser) {
  const { variable, paths } = BROWSERS[browser];
  const path = process.env[variable] ?? paths.find((path) => existsSync(path));
  assert(path, `no ${browser}: install it, or name its program in ${variable}`);
  return path;
}

// Starts a browser. With `socks` (HOST:PORT), all its requests and name resolutions go through that proxy. `overrides` are options of
// Puppeteer.
export function launch(browser, { socks, ...overrides } = {}) {
  const options = { browser, executablePath: program(browser), headless: true, args: [...BROWSERS[browser].args] };
  if (socks && browser === 'chrome') options.args.push(`--proxy-server=socks5://${socks}`);
  if (socks && browser === 'firefox') {
    const [host, port] = socks.split(':');
    options.extraPrefsFirefox = {
      'network.proxy.type': 1,
      'network.proxy.socks': host,
      'network.proxy.socks_port': Number(port),
      'network.proxy.socks_remote_dns': true,
    };
  }
  return puppeteer.launch({ ...options, ...overrides, args: [...options.args, ...(overrides.args ?? [])] });
}
