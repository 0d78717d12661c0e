// The URL of this page's folder at its server, in the form that `umbel web verify` accepts.
export function serverUrl(): string {
  if (location.protocol === 'file:') return 'a file';
  return new URL('.', location.href).href.replace(/\/$/, '');
}
