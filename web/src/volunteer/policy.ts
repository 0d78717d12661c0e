// Restricts the origins that this page may fetch from. The policy in the page can't name the network's directories, which may be on any
// host (web/vite.config.ts). So the page adds a stricter policy when the network is known. A browser lets a page make its
// policy stricter, never less strict.
import { h } from '../page/dom';

// The policy's source expression for `address`. Empty for an invalid URL, which the core reports.
function source(address: string): string[] {
  try {
    const { origin, protocol, hostname } = new URL(address);
    // A policy can't name an IPv6 address, so all hosts of this scheme are allowed.
    return [hostname.startsWith('[') ? protocol : origin];
  } catch {
    return [];
  }
}

// The value of `connect-src` that allows these URLs.
export function sources(directories: readonly string[], engines: readonly string[]): string {
  return ["'self'", ...new Set([...directories, ...engines].flatMap(source))].join(' ');
}

// Allows requests only to this page's origin, the directories and the engines.
export function allowOnly(directories: readonly string[], engines: readonly string[]): void {
  const content = `connect-src ${sources(directories, engines)}`;
  document.head.append(h('meta', { 'http-equiv': 'content-security-policy', content }));
}
