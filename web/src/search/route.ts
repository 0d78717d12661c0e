// The path of a query, hop by hop, as text.
import { h } from '../page/dom';
import { relayName, time } from '../page/words';
import type { Hop, SearchAnswer } from '../umbel';

// The role of a relay of the path, and its view of the query and of the user, as text.
export function hopWords(hop: Hop, place: number, count: number): { role: string; sees: string } {
  const volunteer = 'a volunteer’s browser or home computer: ';
  if (place === count - 1) {
    const sees = 'decrypted the last layer, read the query and sent it to the engine. It doesn’t see your address.';
    return { role: 'Exit', sees: hop.volunteer ? volunteer + sees : sees };
  }
  if (place === 0) return { role: 'First relay', sees: 'sees your address, but can’t read the query.' };
  const sees = 'forwarded the query, and sees neither it nor your address.';
  return { role: 'Middle relay', sees: hop.volunteer ? volunteer + sees : sees };
}

const hop = (relay: Hop, place: number, all: readonly Hop[]): HTMLLIElement => {
  const { role, sees } = hopWords(relay, place, all.length);
  return h('li', {}, h('b', {}, role), ' ', h('code', { title: relay.relay }, relayName(relay.relay)), ' ', h('span', { class: 'ms' }, `(${time(relay.ms)})`), ': ', sees);
};

export function route(answer: SearchAnswer): HTMLDetailsElement {
  return h(
    'details',
    { class: 'route', open: true },
    h('summary', {}, 'The path of your query ', h('small', {}, `answered in ${time(answer.elapsedMs)}`)),
    h(
      'ol',
      {},
      h('li', { class: 'end' }, h('b', {}, 'This browser'), ' encrypted the query in a layer for each relay below.'),
      ...answer.path.map(hop),
      h('li', { class: 'end' }, h('b', {}, answer.engine), ' (the search engine) received the query from the exit.'),
    ),
    h(
      'p',
      { class: 'note' },
      'The circuit carries this query only. The times in brackets are the times to reach each relay when it was built.',
    ),
    answer.sharedExit &&
      h(
        'p',
        { class: 'warn' },
        'This exit also carries other traffic of yours, or did so recently, because no other exit was suitable. It could link ' +
          'that traffic with this query.',
      ),
  );
}
