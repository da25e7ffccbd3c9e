// Latency: browsers round their clock, so fast networks run several times to a sample.

const [WARM_UP, LONG, SAMPLES, BUDGET] = [300, 10, 60, 6000];  // milliseconds, and how many

const at = (sorted, share) => {
  const place = share * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
};

/** Time runs after a warm-up; milliseconds of one run. `progress` hears shares from 0 to 1. */
export async function measure(run, progress) {
  let count = 0;
  const began = performance.now();
  while (performance.now() - began < WARM_UP || count < 3) {
    await run();
    count++;
  }
  const runs = Math.max(1, Math.ceil(LONG * count / (performance.now() - began)));
  const times = [];
  const start = performance.now();
  while (times.length < 5 || (times.length < SAMPLES && performance.now() - start < BUDGET)) {
    const before = performance.now();
    for (let i = 0; i < runs; i++) await run();
    times.push((performance.now() - before) / runs);
    progress(Math.max(times.length / SAMPLES, (performance.now() - start) / BUDGET));
    await new Promise((resolve) => setTimeout(resolve));  // lets the page draw
  }
  const sorted = times.toSorted?.((a, b) => a - b) ?? [...times].sort((a, b) => a - b);
  return {
    median: at(sorted, 0.5),
    quartiles: [at(sorted, 0.25), at(sorted, 0.75)],
    fastest: sorted[0],
    slowest: sorted.at(-1),
    samples: sorted.length,
    runs,
  };
}

export function milliseconds(value) {
  if (value < 0.095) return `${Math.round(1000 * value)} µs`;
  return `${value < 9.95 ? value.toFixed(2) : value < 99.5 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** The result as lines of text. */
export function asText(about, median, rows, agent) {
  const lines = [[about.title, `${about.bytes} bytes`], ['Median', milliseconds(median)], ...Object.entries(rows),
    ['User agent', agent]];
  return lines.map((line) => line.join(': ')).join('\n');
}
