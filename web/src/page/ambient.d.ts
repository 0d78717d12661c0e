// The native client's page, which this shares parts with.
declare module '@page/keys.js';
