// What this page may fetch from, once it knows. The policy that it is served with can't name the network's directories, which may
// be anywhere (web/vite.config.ts); so the page takes the rest away from itself, for as long as it is open. A browser lets a page
// make its policy stricter and never less so.
import { h } from '../page/dom';

// How a policy names where `address` leads. None if it is no address: the core says so, in words.
function source(address: string): string[] {
  try {
    const { origin, protocol, hostname } = new URL(address);
    // It has no way to name an IPv6 address, and browsers pass over what tries; so all hosts are let through, by this scheme.
    return [hostname.startsWith('[') ? protocol : origin];
  } catch {
    return [];
  }
}

export function sources(directories: readonly string[], engines: readonly string[]): string {
  return ["'self'", ...new Set([...directories, ...engines].flatMap(source))].join(' ');
}

export function allowOnly(directories: readonly string[], engines: readonly string[]): void {
  const content = `connect-src ${sources(directories, engines)}`;
  document.head.append(h('meta', { 'http-equiv': 'content-security-policy', content }));
}
