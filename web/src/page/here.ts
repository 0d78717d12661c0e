// Where this page came from, as `umbel web verify` takes it.
export function here(): string {
  if (location.protocol === 'file:') return 'a file';
  return new URL('.', location.href).href.replace(/\/$/, '');
}
