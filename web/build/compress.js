// Lays beside each file what is sent to browsers that take it packed; only where that is less.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const dist = fileURLToPath(new URL('../dist/', import.meta.url));
const files = readdirSync(dist, { recursive: true, withFileTypes: true })
  .filter((file) => file.isFile() && !file.name.startsWith('.'))
  .map((file) => `${file.parentPath}/${file.name}`.replaceAll('//', '/'))
  .sort();
for (const file of files) {
  const whole = readFileSync(file);
  const packed = {
    br: brotliCompressSync(whole, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: whole.length } }),
    gz: gzipSync(whole, { level: 9 }),
  };
  for (const [ending, bytes] of Object.entries(packed)) {
    if (bytes.length < whole.length) writeFileSync(`${file}.${ending}`, bytes);
  }
  const name = file.slice(dist.length).padEnd(36);
  console.log(`${name} ${String(whole.length).padStart(8)} bytes, ${packed.gz.length} by gzip, ${packed.br.length} by brotli`);
}
