// Addresses of this machine.
import { networkInterfaces } from 'node:os';

// An IPv4 address of this machine that isn't loopback, because pages of Firefox dial no loopback address. Undefined if there is none.
export const nonLoopbackAddress = () =>
  Object.values(networkInterfaces()).flat().find((entry) => entry.family === 'IPv4' && !entry.internal)?.address;

// The reason to skip a browser's dials of relays at `address`, or false.
export const skipReason = (browser, address) =>
  browser === 'firefox' && address === undefined && 'Firefox dials no loopback address, and this machine has no other';
