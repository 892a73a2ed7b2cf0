// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of this folder share.

/** Numbers in [0, 1), the same on every machine. */
export function random(seed) {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
export const summary = (values) => ({ median_ms: median(values), min_ms: Math.min(...values), max_ms: Math.max(...values) });

// Element by element: a chain of layers multiplies an error bound of one layer by their number.
export function check(got, want, what) {
  const scale = Math.max(...want.map(Math.abs));
  const worst = got.reduce((most, v, i) => Math.max(most, Math.abs(v - want[i])), 0);
  if (!(worst <= 1e-4 * scale) || scale === 0) throw new Error(`${what}: off by ${worst} of ${scale}`);
}

/** Runs the programs one after the other, `repeats` times; the milliseconds of each. */
export async function timeInTurns(repeats, programs) {
  const times = programs.map(() => []);
  for (let i = 0; i < repeats; ++i) {
    for (const [n, program] of programs.entries()) {
      const begin = performance.now();
      await program();
      times[n].push(performance.now() - begin);
    }
  }
  return times;
}
