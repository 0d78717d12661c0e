// Builds the two pages and the library. The result depends only on the sources and the lock file. File names contain a hash of the
// content. The library is the exception: other programs import it by its name, and browsers revalidate it by its ETag.
import { fileURLToPath } from 'node:url';

import { defineConfig } from 'vitest/config';

// The content security policy, which is part of each page, so that it applies on any host.
//
// connect-src allows all hosts, because a network's directories, and the search engines that a volunteer queries, may be on any host.
// Only the page's own scripts run, so no foreign script can use this permission. The volunteer's page excludes all other hosts as soon as
// the network is known (src/volunteer/policy.ts).
const COMMON = [
  "default-src 'none'",
  // Allows WebAssembly, but no `eval`.
  "script-src 'self' 'wasm-unsafe-eval'",
  "style-src 'self'",
  "img-src 'self' data:",
  'connect-src http: https:',
  "form-action 'none'",
  "base-uri 'none'",
];

const POLICY = COMMON.join('; ');

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  root: here('.'),
  // A relative base, so that the pages work in any folder of any host.
  base: './',
  publicDir: false,
  plugins: [
    {
      // Adds the policy only in a build, because Vite adds scripts to the page during development.
      name: 'policy',
      apply: 'build',
      transformIndexHtml: (html) => html.replace('<!--policy-->', `<meta http-equiv="content-security-policy" content="${POLICY}">`),
    },
    {
      // The search page needs the core immediately, so the page loads the core before the scripts. The volunteer's page needs the core later.
      name: 'early core',
      apply: 'build',
      transformIndexHtml: {
        order: 'post',
        handler: (_, { filename, bundle }) => {
          const core = Object.keys(bundle ?? {}).find((name) => /umbel_bg-.*\.wasm$/u.test(name));
          if (core === undefined || !filename.endsWith('search.html')) return [];
          return [{ tag: 'link', injectTo: 'head', attrs: { rel: 'preload', href: `./${core}`, as: 'fetch', type: 'application/wasm', crossorigin: true } }];
        },
      },
    },
  ],
  resolve: {
    // The folder of the native client's search page, with the files that both share.
    alias: { '@page': here('../src/page') },
  },
  server: { fs: { allow: [here('..')] } },
  build: {
    outDir: here('dist'),
    // build/clear.js empties the folder, except .gitignore.
    emptyOutDir: false,
    target: ['chrome107', 'firefox104', 'safari16'],
    // A separate file for each asset, because `data:` URLs are allowed for images only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: true,
    sourcemap: false,
    rollupOptions: {
      preserveEntrySignatures: 'strict',
      input: { volunteer: here('volunteer.html'), search: here('search.html'), umbel: here('src/umbel.ts') },
      output: {
        entryFileNames: (chunk) => (chunk.name === 'umbel' ? 'umbel.js' : 'assets/[name]-[hash].js'),
        chunkFileNames: 'assets/[name]-[hash].js',
        assetFileNames: 'assets/[name]-[hash][extname]',
      },
    },
  },
  test: { include: ['tests/**/*.test.ts'], environment: 'node' },
});
