// Opens a .tflite file on LiteRT.js and runs it; nothing here knows what the file is for.

import {getGlobalLiteRt, loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

let loaded;

/** Whether this page may use threads: browsers allow that to pages that are cross-origin isolated. */
export const threaded = () => self.crossOriginIsolated === true;

/**
 * Open a file.
 * @param model Its URL, or its content in a Uint8Array.
 * @param accelerator "wasm" (the CPU) or "webgpu".
 */
export async function open(model, accelerator = 'wasm') {
  const wasm = new URL('./litert/wasm/', import.meta.url).href;
  loaded ??= loadLiteRt(wasm, {threads: threaded()});
  await loaded;
  const compiled = await loadAndCompile(model, {accelerator});
  const shapes = compiled.getInputDetails().map((each) => Array.from(each.shape));

  /** Run one array for each input, of the type that the file takes; returns one for each output. */
  async function run(arrays) {
    const inputs = arrays.map((each, i) => new Tensor(each, shapes[i]));
    const outputs = await compiled.run(inputs);
    const values = await Promise.all(outputs.map(async (each) => (await each.data()).slice()));
    for (const each of [...inputs, ...outputs]) each.delete();
    return values;
  }

  const {liteRtWasm} = getGlobalLiteRt();
  return {
    run,
    shapes,
    threads: accelerator === 'wasm' && liteRtWasm?.getThreadCount ? liteRtWasm.getThreadCount() : 1,
    close: () => compiled.delete(),
  };
}
