// A volunteer's state in two lines.
import type { VolunteerLimits, VolunteerState } from '../umbel';
import { bytes, rate, sentence } from '../page/words';

export interface Lines {
  state: string;
  why: string;
}

const NUMBERS = ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight'];

export const number = (count: number): string => NUMBERS[count] ?? String(count);

export function tell(state: VolunteerState): Lines {
  const why = sentence(state.why ?? '');
  switch (state.phase) {
    case 'off':
      return { state: 'Off', why: why || 'Nothing runs until you turn it on.' };
    case 'starting':
      return { state: 'Starting…', why: why || 'Reading the list of relays.' };
    case 'registering':
      return { state: 'Starting…', why: why || 'Telling the directory that this relay is here.' };
    case 'connecting':
      return { state: 'Connecting…', why: why || 'Opening channels to relays through which others can reach this one.' };
    case 'reachable':
      return {
        state: 'On',
        why: `Others reach this relay through ${number(state.gateways)} ${state.gateways === 1 ? 'gateway' : 'gateways'}. ${why || 'Thank you!'}`,
      };
    case 'unreachable':
      return {
        state: 'On, but not reachable',
        why: why || 'None of the relays through which others could reach this one answers. It keeps trying.',
      };
    case 'paused':
      return { state: 'Paused', why: why || 'One of your limits is reached.' };
    case 'error':
      return { state: 'It doesn’t work', why };
  }
}

// The limits in a line.
export function limitsInShort(limits: VolunteerLimits): string {
  const parts = [
    limits.bytesPerSecond === undefined ? 'as fast as it goes' : `at most ${rate(limits.bytesPerSecond)}`,
    limits.bytesTotal !== undefined && `${bytes(limits.bytesTotal)} in all`,
    limits.onlyOnPower && 'plugged in',
    limits.onlyUnmetered && 'not mobile',
  ];
  return parts.filter(Boolean).join(' · ');
}
