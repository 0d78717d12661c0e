// Writes a gzip and a brotli copy beside each file, for browsers that accept the encoding, if the copy is smaller than the file.
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
  const compressed = {
    br: brotliCompressSync(whole, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: whole.length } }),
    gz: gzipSync(whole, { level: 9 }),
  };
  for (const [extension, bytes] of Object.entries(compressed)) {
    if (bytes.length < whole.length) writeFileSync(`${file}.${extension}`, bytes);
  }
  const name = file.slice(dist.length).padEnd(36);
  console.log(`${name} ${String(whole.length).padStart(8)} bytes, ${compressed.gz.length} by gzip, ${compressed.br.length} by brotli`);
}
