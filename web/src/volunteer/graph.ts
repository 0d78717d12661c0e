// Bytes a second over the last two minutes, as two paths in a picture of 240 by 60.

export const WIDTH = 240;
export const HEIGHT = 60;
// Samples, one a second.
export const SPAN = 120;
// Below this the picture would show noise as mountains.
const LEAST_TOP = 10_000;

export interface Drawn {
  line: string;
  area: string;
  // What the upper edge stands for, in bytes a second.
  top: number;
}

// The next of 1, 2, 5, 10, 20… that is not below `value`.
export function roundTop(value: number): number {
  const least = Math.max(value, LEAST_TOP);
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= least) ?? least;
}

// The newest sample is the last, and stands at the right edge.
export function draw(samples: readonly number[]): Drawn {
  const shown = samples.slice(-SPAN);
  const top = roundTop(Math.max(0, ...shown));
  if (shown.length < 2) return { line: '', area: '', top };
  const step = WIDTH / (SPAN - 1);
  const first = WIDTH - step * (shown.length - 1);
  const points = shown.map((value, n) => `${(first + n * step).toFixed(1)} ${(HEIGHT - (value / top) * HEIGHT).toFixed(1)}`);
  const line = `M${points.join('L')}`;
  return { line, area: `${line}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z`, top };
}

// The last two minutes, one value for each second that has passed, however often values come: hidden tabs are woken rarely.
export class Samples {
  readonly values: number[] = [];
  #second: number | undefined;

  // `value` is the rate at `now`, in milliseconds.
  add(now: number, value: number): void {
    const second = Math.floor(now / 1000);
    if (this.#second === undefined) this.values.push(value);
    else if (second > this.#second) {
      // What happened in seconds that nobody looked at is taken to be as now.
      for (let missed = Math.min(second - this.#second, SPAN); missed > 0; missed--) this.values.push(value);
    } else this.values[this.values.length - 1] = value;
    this.#second = Math.max(second, this.#second ?? second);
    this.values.splice(0, this.values.length - SPAN);
  }
}
