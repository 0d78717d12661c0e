// The way a question took, hop by hop, in words.
import { h } from '../page/dom';
import { relayName, time } from '../page/words';
import type { Hop, SearchAnswer } from '../umbel';

// What a relay of the path is and knows.
export function hopWords(hop: Hop, place: number, count: number): { role: string; knows: string } {
  const volunteer = 'a volunteer’s browser or home computer. It ';
  if (place === count - 1) {
    const knows = 'opened the last layer, read the question and asked the engine. It doesn’t know your address.';
    return { role: 'Exit', knows: hop.volunteer ? volunteer + knows : knows };
  }
  if (place === 0) return { role: 'First relay', knows: 'knows your address, but could not read the question.' };
  const knows = 'passed it on, and knows neither you nor the question.';
  return { role: 'Middle relay', knows: hop.volunteer ? volunteer + knows : knows };
}

const hop = (one: Hop, place: number, all: readonly Hop[]): HTMLLIElement => {
  const { role, knows } = hopWords(one, place, all.length);
  return h('li', {}, h('b', {}, role), ' ', h('code', { title: one.relay }, relayName(one.relay)), ' ', h('span', { class: 'ms' }, `(${time(one.ms)})`), ': ', knows);
};

export function route(answer: SearchAnswer): HTMLDetailsElement {
  return h(
    'details',
    { class: 'route', open: true },
    h('summary', {}, 'The way your question took ', h('small', {}, `there and back in ${time(answer.elapsedMs)}`)),
    h(
      'ol',
      {},
      h('li', { class: 'end' }, h('b', {}, 'This browser'), ' locked the question in a layer for each relay below.'),
      ...answer.path.map(hop),
      h('li', { class: 'end' }, h('b', {}, answer.engine), ' (the search engine) saw the question come from the exit.'),
    ),
    h(
      'p',
      { class: 'note' },
      'The circuit carries nothing but this one question. The times in brackets are what it took to reach each relay when it was built.',
    ),
    answer.sharedExit &&
      h(
        'p',
        { class: 'warn' },
        'Something else that you asked leaves by the same exit, since no other offers this engine. That exit could guess that ' +
          'both are one person’s.',
      ),
  );
}
