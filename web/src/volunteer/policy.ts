// What this page may speak to, once it knows. The policy that it is served with can't name the network's directories, which may
// be anywhere (web/vite.config.ts); so the page takes the rest away from itself, for as long as it is open. A browser lets a page
// make its policy stricter and never less so.
import { h } from '../page/dom';

export function sources(directories: readonly string[], engines: readonly string[]): string {
  const origins = [...directories.map((directory) => new URL(directory).origin), ...engines];
  return ["'self'", ...new Set(origins)].join(' ');
}

export function allowOnly(directories: readonly string[], engines: readonly string[]): void {
  const content = `connect-src ${sources(directories, engines)}`;
  document.head.append(h('meta', { 'http-equiv': 'content-security-policy', content }));
}
