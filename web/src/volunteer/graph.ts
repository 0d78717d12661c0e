// The forwarding rates of the last two minutes, in bytes per second, as two SVG paths in a picture of 240 by 60.

export const WIDTH = 240;
export const HEIGHT = 60;
// Maximum number of samples, one per second.
export const MAX_SAMPLES = 120;
// Lowest rate at the upper edge, because a smaller scale would magnify noise.
const MIN_TOP = 10_000;

export interface GraphPaths {
  line: string;
  area: string;
  // The rate at the upper edge, in bytes per second.
  top: number;
}

// The smallest number of 1, 2, 5, 10, 20… that is not below `value` and the lowest rate.
export function roundTop(value: number): number {
  const minimum = Math.max(value, MIN_TOP);
  const magnitude = 10 ** Math.floor(Math.log10(minimum));
  return [1, 2, 5, 10].map((step) => step * magnitude).find((top) => top >= minimum) ?? minimum;
}

// The paths of the samples. The last sample is the newest, at the right edge.
export function draw(samples: readonly number[]): GraphPaths {
  const shown = samples.slice(-MAX_SAMPLES);
  const top = roundTop(Math.max(0, ...shown));
  if (shown.length < 2) return { line: '', area: '', top };
  const step = WIDTH / (MAX_SAMPLES - 1);
  const first = WIDTH - step * (shown.length - 1);
  const points = shown.map((value, n) => `${(first + n * step).toFixed(1)} ${(HEIGHT - (value / top) * HEIGHT).toFixed(1)}`);
  const line = `M${points.join('L')}`;
  return { line, area: `${line}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z`, top };
}

// One value for each second of the last two minutes, independent of the number of calls, because timers of hidden tabs run rarely.
export class Samples {
  readonly values: number[] = [];
  #second: number | undefined;

  // `value` is the rate at `now`, in milliseconds.
  add(now: number, value: number): void {
    const second = Math.floor(now / 1000);
    if (this.#second === undefined) this.values.push(value);
    else if (second > this.#second) {
      // Seconds without a call get the current value.
      for (let missed = Math.min(second - this.#second, MAX_SAMPLES); missed > 0; missed--) this.values.push(value);
    } else this.values[this.values.length - 1] = value;
    this.#second = Math.max(second, this.#second ?? second);
    this.values.splice(0, this.values.length - MAX_SAMPLES);
  }
}
