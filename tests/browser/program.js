// The tested program: built by cargo, or the existing file `UMBEL_PROGRAM`.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

// Starts the program with `options` and no input.
export function umbel(options, stdio) {
  const built = process.env.UMBEL_PROGRAM;
  const [program, before] = built ? [built, []] : ['cargo', ['run', '--quiet', '--']];
  return spawn(program, [...before, ...options], { cwd: root, stdio: ['ignore', ...stdio] });
}
