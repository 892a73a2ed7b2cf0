// SPDX-License-Identifier: Apache-2.0
// Compiled, never run: correct calls must type-check, and each line after @ts-expect-error must not.
import { hasRelaxedSimd, hasSimd, load, type BitmapMatrix, type Buffer, type Checkpoint, type CSRMatrix, type GQSMatrix, type NMMatrix } from "../../wasm/sparsekern.mjs";

export async function correct(file: ArrayBuffer): Promise<number> {
  const sk = await load({ tier: hasRelaxedSimd() ? "relaxed" : hasSimd() ? "simd128" : "scalar", wasm: new URL("https://example.org/a.wasm") });
  const packed = sk.pack(new Float32Array(6), 2, 3, { blockRows: 2, mask: new Uint8Array(6) });
  const matrix: CSRMatrix = sk.matrix(packed);
  const x: Buffer = sk.buffer(3);
  const y = matrix.linear(x, { out: sk.buffer(2), activation: "gelu" });
  y.dispose();
  const z: Float32Array | Uint16Array = matrix.linear(new Float32Array(3), { bias: new Float32Array(2) });
  matrix.conv2d(new Uint16Array(3), { dtype: "bfloat16", height: 1, width: 1, stride: 2 });
  const nm: NMMatrix = sk.nmMatrix(sk.packNm(new Float32Array(8), 1, 8, { n: 2, m: 4 }));
  nm.linear(x, { out: sk.buffer(1), rows: 1 }).dispose();
  const bitmap: BitmapMatrix = sk.bitmapMatrix(sk.packBitmap(new Uint16Array(8), 1, 8, { dtype: "float16" }));
  bitmap.linear(x, { out: sk.buffer(1), rows: 1 }).dispose();
  const gqs: GQSMatrix = sk.gqsMatrix(sk.packGqs(new Float32Array(8), 1, 8, { bits: 2, group: 32, scaleDtype: "bfloat16" }));
  gqs.linear(x, { out: sk.buffer(1), rows: 1, int8Activations: true }).dispose();
  const dense: Float32Array = gqs.toDense();
  console.log(gqs.linearKernel(1, { int8Activations: true }), dense.length);
  const model: Checkpoint = sk.checkpoint(file);
  for (const [name, layer] of model.layers) {
    console.assert(layer.matrix.rows === layer.shape[0], name);
    if (layer.kind === "nm_linear") console.log(layer.matrix.m);
    else if (layer.kind === "bitmap_linear") console.log(layer.matrix.kept);
    else if (layer.kind === "gqs_linear") layer.matrix.linear(x, { int8Activations: layer.int8Activations });
    else console.log(layer.matrix.blockRows);
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
  // @ts-expect-error groups are of 16, 32, 64 or 128
  sk.packGqs(new Float32Array(6), 2, 3, { group: 8 });
  // @ts-expect-error quantized groups have a scale
  sk.gqsMatrix({ values: new Int8Array(64), structure: new Uint8Array(64) });
  // @ts-expect-error x of N:M matrices is not rounded
  nm.linear(new Float32Array(3), { int8Activations: true });
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
