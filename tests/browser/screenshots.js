// Screenshots of pages for review, in the folder named by UMBEL_PICTURES; none without it.
import { mkdirSync } from 'node:fs';

const folder = process.env.UMBEL_PICTURES;
const SIZES = [[1200, 900], [390, 844]];

// Saves screenshots of `page` in each size, and in Chromium in each colour scheme.
export async function screenshots(page, browser, name) {
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  for (const [width, height] of SIZES) {
    for (const value of browser === 'chrome' ? ['light', 'dark'] : ['light']) {
      await page.setViewport({ width, height });
      if (browser === 'chrome') await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
      // Waits for animations, because a moving switch shows neither of its states.
      await page.evaluate(() => Promise.all(document.getAnimations().map((animation) => animation.finished)));
      await page.screenshot({ path: `${folder}/${browser}-${name}-${value}-${width}.png`, fullPage: true });
    }
  }
  const [width, height] = SIZES[0];
  await page.setViewport({ width, height });
}
