// Texts of a volunteer's state and limits.
import type { VolunteerLimits, VolunteerState } from '../umbel';
import { bytes, rate, sentence } from '../page/words';

export interface Lines {
  state: string;
  why: string;
}

const NUMBERS = ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'];

// A small number as a word.
export const number = (count: number): string => NUMBERS[count] ?? String(count);

export function stateLines(state: VolunteerState): Lines {
  const why = sentence(state.why ?? '');
  switch (state.phase) {
    case 'off':
      return { state: 'Off', why: why || 'Nothing runs until you turn it on.' };
    case 'starting':
      return { state: 'Starting…', why: why || 'Verifying the list of relays.' };
    case 'registering':
      return { state: 'Starting…', why: why || 'Registering with the directory.' };
    case 'connecting':
      return { state: 'Connecting…', why: why || 'Opening channels to gateways, over which others reach this relay.' };
    case 'reachable':
      return {
        state: 'On',
        why: `Others reach this relay over ${number(state.gateways)} ${state.gateways === 1 ? 'gateway' : 'gateways'}. ${why || 'Thank you!'}`,
      };
    case 'unreachable':
      return {
        state: 'On, but not reachable',
        why: why || 'No gateway can be reached. The relay keeps retrying.',
      };
    case 'paused':
      return { state: 'Paused', why: why || 'One of your limits is reached.' };
    case 'error':
      return { state: 'Failed', why };
  }
}

// The limits as one line.
export function limitsInShort(limits: VolunteerLimits): string {
  const parts = [
    limits.bytesPerSecond === undefined ? 'no speed limit' : `at most ${rate(limits.bytesPerSecond)}`,
    limits.bytesTotal !== undefined && `${bytes(limits.bytesTotal)} in total`,
    limits.onlyOnPower && 'plugged in',
    limits.onlyUnmetered && 'not mobile',
  ];
  return parts.filter(Boolean).join(' · ');
}
