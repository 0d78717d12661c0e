// The program that is tested: as cargo builds it, or one that was built before and `UMBEL_PROGRAM` names.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

// Starts it with `options` and no input.
export function umbel(options, stdio) {
  const built = process.env.UMBEL_PROGRAM;
  const [program, before] = built ? [built, []] : ['cargo', ['run', '--quiet', '--']];
  return spawn(program, [...before, ...options], { cwd: root, stdio: ['ignore', ...stdio] });
}
