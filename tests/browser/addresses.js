// Addresses of this machine.
import { networkInterfaces } from 'node:os';

// An IPv4 address that isn't loopback: pages of Firefox dial no loopback address. Undefined if the machine has none.
export const elsewhere = () =>
  Object.values(networkInterfaces()).flat().find((one) => one.family === 'IPv4' && !one.internal)?.address;

// Why a browser's dials of relays are not tested at `address`, or false if they are.
export const unreachable = (browser, address) =>
  browser === 'firefox' && address === undefined && 'Firefox dials no loopback address, and this machine has no other';
