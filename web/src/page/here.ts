// The URL of this page's server, as `umbel web verify` accepts it.
export function here(): string {
  if (location.protocol === 'file:') return 'a file';
  return new URL('.', location.href).href.replace(/\/$/, '');
}
