// SPDX-License-Identifier: Apache-2.0
// Compiled, never run: correct calls must type-check, and each line after @ts-expect-error must not.
import { hasSimd, load, type Buffer, type Checkpoint, type CSRMatrix, type NMMatrix } from "../../wasm/sparsekern.mjs";

export async function correct(file: ArrayBuffer): Promise<number> {
  const sk = await load({ tier: hasSimd() ? "simd128" : "scalar", wasm: new URL("https://example.org/a.wasm") });
  const packed = sk.pack(new Float32Array(6), 2, 3, { blockRows: 2, mask: new Uint8Array(6) });
  const matrix: CSRMatrix = sk.matrix(packed);
  const x: Buffer = sk.buffer(3);
  const y = matrix.linear(x, { out: sk.buffer(2), activation: "gelu" });
  y.dispose();
  const z: Float32Array | Uint16Array = matrix.linear(new Float32Array(3), { bias: new Float32Array(2) });
  matrix.conv2d(new Uint16Array(3), { dtype: "bfloat16", height: 1, width: 1, stride: 2 });
  const nm: NMMatrix = sk.nmMatrix(sk.packNm(new Float32Array(8), 1, 8, { n: 2, m: 4 }));
  nm.linear(x, { out: sk.buffer(1), rows: 1 }).dispose();
  const model: Checkpoint = sk.checkpoint(file);
  for (const [name, layer] of model.layers) {
    console.assert(layer.matrix.rows === layer.shape[0], name);
    console.log(layer.kind === "nm_linear" ? layer.matrix.m : layer.matrix.blockRows);
  }
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
  // @ts-expect-error m is missing
  sk.packNm(new Float32Array(6), 2, 3, { n: 1 });
  // @ts-expect-error groups are of 2, 4, 8, 16 or 32
  const nm = sk.nmMatrix(sk.packNm(new Float32Array(6), 2, 3, { n: 1, m: 3 }));
  // @ts-expect-error convolutions are csr's
  nm.conv2d(new Float32Array(3), { height: 1, width: 1 });
  const matrix = sk.matrix(packed);
  // @ts-expect-error plain arrays are not taken
  matrix.linear([1, 2, 3]);
  // @ts-expect-error height and width are missing
  matrix.conv2d(new Float32Array(3), {});
  // @ts-expect-error unknown activation
  matrix.linear(new Float32Array(3), { activation: "tanh" });
}
