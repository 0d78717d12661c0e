// The two pages and the library. What is built depends on nothing but the sources and the lock file: names hold a hash of
// what is in the file, but for the library, which other people's programs name, and which checks itself by its ETag.
import { fileURLToPath } from 'node:url';

import { defineConfig } from 'vitest/config';

// The content policy that each page carries in itself, so that it holds on any host.
//
// connect-src is open: the directories that a network names may be on any host, as may the search engines that a volunteer asks for
// others. Scripts are this page's own files alone, so nothing foreign can make use of that; and the volunteer's page takes
// all other hosts away from itself as soon as it knows the network (src/volunteer/policy.ts).
const COMMON = [
  "default-src 'none'",
  // WebAssembly is compiled, strings are not.
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
  // Relative, so that the pages work in any folder of any host.
  base: './',
  publicDir: false,
  plugins: [
    {
      // Only in what is built: while developing, Vite itself puts scripts into the page.
      name: 'policy',
      apply: 'build',
      transformIndexHtml: (html) => html.replace('<!--policy-->', `<meta http-equiv="content-security-policy" content="${POLICY}">`),
    },
    {
      // The search page needs the core at once, and otherwise learns of it only from a script; a volunteer's page needs it when asked.
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
    // Where the search page of the native client keeps what both pages share.
    alias: { '@page': here('../src/page') },
  },
  server: { fs: { allow: [here('..')] } },
  build: {
    outDir: here('dist'),
    // build/clear.js does it, and leaves the note to git.
    emptyOutDir: false,
    target: ['chrome107', 'firefox104', 'safari16'],
    // A file of its own for everything: `data:` is allowed to images alone.
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
