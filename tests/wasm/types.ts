// SPDX-License-Identifier: Apache-2.0
// Compiled, never run: correct calls must type-check, and each line after @ts-expect-error must not.
import { hasSimd, load, type Buffer, type Checkpoint, type CSRMatrix } from "../../wasm/sparsekern.mjs";

export async function correct(file: ArrayBuffer): Promise<number> {
  const sk = await load({ tier: hasSimd() ? "simd128" : "scalar", wasm: new URL("https://example.org/a.wasm") });
  const packed = sk.pack(new Float32Array(6), 2, 3, { blockRows: 2, mask: new Uint8Array(6) });
  const matrix: CSRMatrix = sk.matrix(packed);
  const x: Buffer = sk.buffer(3);
  const y = matrix.linear(x, { out: sk.buffer(2), activation: "gelu" });
  y.dispose();
  const z: Float32Array | Uint16Array = matrix.linear(new Float32Array(3), { bias: new Float32Array(2) });
  matrix.conv2d(new Uint16Array(3), { dtype: "bfloat16", height: 1, width: 1, stride: 2 });
  const model: Checkpoint = sk.checkpoint(file);
  for (const [name, layer] of model.layers) console.assert(layer.matrix.rows === layer.shape[0], name);
  model.dispose();
  return z.length + matrix.kept;
}

export async function wrong(): Promise<void> {
  // @ts-expect-error unknown tier
  const sk = await load({ tier: "avx2" });
  // @ts-expect-error rows and cols are missing
  const packed = sk.pack(new Float32Array(6));
  // @ts-expect-error block rows are 1, 2 or 4
  sk.pack(new Float32Array(6), 2, 3, { blockRows: 3 });
  const matrix = sk.matrix(packed);
  // @ts-expect-error plain arrays are not taken
  matrix.linear([1, 2, 3]);
  // @ts-expect-error height and width are missing
  matrix.conv2d(new Float32Array(3), {});
  // @ts-expect-error unknown activation
  matrix.linear(new Float32Array(3), { activation: "tanh" });
}
