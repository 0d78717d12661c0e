// The badge: one small classic script that needs no other file.
import { fileURLToPath } from 'node:url';

import { defineConfig } from 'vite';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

export default defineConfig({
  root: here('.'),
  publicDir: false,
  build: {
    outDir: here('dist'),
    emptyOutDir: false,
    target: ['chrome107', 'firefox104', 'safari16'],
    lib: { entry: here('src/badge.ts'), formats: ['iife'], name: 'umbelBadge', fileName: () => 'badge.js' },
  },
});
