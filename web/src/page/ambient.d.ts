// The keyboard shortcuts, shared with the native client's search page.
declare module '@page/keys.js';
