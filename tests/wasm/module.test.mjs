// SPDX-License-Identifier: Apache-2.0
// node --test, with FIXTURE=<folder of fixture.py>: results of all tiers go there, for `fixture.py check`.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { crc32 } from "node:zlib";
import "../../wasm/relaxed_simd.mjs";
import { hasRelaxedSimd, hasSimd, load } from "../../wasm/sparsekern.mjs";

const folder = process.env.FIXTURE;
assert.ok(folder, "FIXTURE must name the folder that fixture.py wrote");
const file = new Uint8Array(await readFile(join(folder, "model.safetensors")));
const cases = JSON.parse(await readFile(join(folder, "cases.json"), "utf8"));

async function input(name, dtype, ending = "x") {
  const bytes = new Uint8Array(await readFile(join(folder, `${name}.${ending}`))).slice();
  return dtype === "float32" ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}

// The checkpoint with other metadata, whose checksum is right.
function edited(change) {
  const length = new DataView(file.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + length)));
  const described = JSON.parse(header.__metadata__.sparsekern);
  change(described, header);
  const text = JSON.stringify(described);
  header.__metadata__ = { sparsekern: text, "sparsekern.crc32": crc32(text).toString(16).padStart(8, "0") };
  const head = new TextEncoder().encode(JSON.stringify(header));
  const result = new Uint8Array(8 + head.length + file.length - 8 - length);
  new DataView(result.buffer).setUint32(0, head.length, true);
  result.set(head, 8);
  result.set(file.subarray(8 + length), 8 + head.length);
  return result;
}

// A product in plain JavaScript; NaN and infinities do not occur in these tests.
function plain(dense, rows, cols, x, bias) {
  return Float32Array.from({ length: (x.length / cols) * rows }, (_, i) => {
    const m = Math.floor(i / rows) * cols;
    const n = i % rows;
    let sum = bias?.[n] ?? 0;
    for (let k = 0; k < cols; ++k) sum += dense[n * cols + k] * x[m + k];
    return sum;
  });
}
function close(got, want, what) {
  assert.equal(got.length, want.length);
  for (let i = 0; i < got.length; ++i) {
    assert.ok(Math.abs(got[i] - want[i]) <= 1e-4 * (1 + Math.abs(want[i])), `${what}, ${i}: ${got[i]} for ${want[i]}`);
  }
}
// Numbers in (-1, 1) that repeat nowhere near.
const numbers = (length, seed = 1) => Float32Array.from({ length }, (_, i) => Math.sin(12.9898 * (i + seed)));
// Groups of x as multiples of their largest magnitude / 127.
function roundGroups(x, cols, group) {
  const result = x.slice();
  for (let at = 0, end; at < x.length; at = end) {
    end = Math.min(at + group, at - (at % cols) + cols);
    const most = x.subarray(at, end).reduce((all, v) => Math.max(all, Math.abs(v)), 0);
    const inverse = Math.fround(127 / most);
    for (let k = at; k < end; ++k) result[k] = Math.round(Math.fround(x[k] * inverse)) * Math.fround(most / 127);
  }
  return result;
}
const SHAPES = [[1, 1], [37, 53], [16, 64], [5, 130], [130, 17], [33, 257]];

for (const tier of ["relaxed", "simd128", "scalar"]) {
  describe(tier, () => {
    let sk;
    before(async () => {
      sk = await load({ tier });
    });

    test("runs the kernels of its tier", () => {
      assert.deepEqual(sk.isa, { scalar: ["scalar"], simd128: ["scalar", "simd128"], relaxed: ["scalar", "simd128", "relaxed"] }[tier]);
      const matrix = sk.matrix(sk.pack(Float32Array.of(1, 0, 0, 2), 2, 2));
      assert.ok(matrix.linearKernel(1).endsWith(tier === "scalar" ? "decode__scalar" : "decode__wasm_simd128"));
      assert.ok(matrix.conv2dKernel().startsWith("csr_conv2d_r1_f32_batch__"));
      matrix.dispose();
    });

    test("multiplies the layers of a checkpoint", async () => {
      const model = sk.checkpoint(file);
      assert.equal(model.layers.get("one").matrix, model.layers.get("tanh").matrix); // tied
      assert.equal(model.layers.get("nm").matrix, model.layers.get("nm4").matrix);
      assert.equal(model.layers.get("bitmap-tied").matrix, model.layers.get("bitmap").matrix);
      assert.equal(model.layers.get("gqs4int8").matrix, model.layers.get("gqs4").matrix);
      assert.notEqual(model.layers.get("twice").matrix, model.layers.get("relu").matrix); // one structure, other values
      assert.deepEqual(["gqs4", "gqs4int8", "bitmap"].map((name) => model.layers.get(name).int8Activations), [false, true, false]);
      const { matrix: nm } = model.layers.get("nm4");
      assert.deepEqual([nm.rows, nm.cols, nm.n, nm.m, nm.kept], [130, 250, 2, 4, 130 * (62 * 2 + 2)]);
      assert.ok(nm.linearKernel(1).endsWith(tier === "scalar" ? "decode__scalar" : "decode__wasm_simd128"));
      for (const { name, layer: layerName, dtype, shape } of cases) {
        const { matrix, bias, activation, stride, kind, int8Activations } = model.layers.get(layerName);
        const x = await input(name, dtype);
        const options = { dtype, bias, activation, int8Activations };
        const y = kind !== "csr_conv2d"
          ? matrix.linear(x, { ...options, rows: shape[0] })
          : matrix.conv2d(x, { ...options, stride, batch: shape[0], height: shape[2], width: shape[3] });
        await writeFile(join(folder, `${name}.node-${tier}`), y);
      }
      model.dispose();
      assert.throws(() => model.layers.get("relu").matrix.linear(new Float32Array(257)), /used after dispose/);
    });

    test("packs and unpacks", () => {
      const dense = Float32Array.from({ length: 37 * 53 }, (_, i) => (i % 7 === 0 ? i + 1 : 0));
      for (const blockRows of [1, 2, 4]) {
        const matrix = sk.matrix(sk.pack(dense, 37, 53, { blockRows }));
        assert.deepEqual([matrix.rows, matrix.cols, matrix.blockRows], [37, 53, blockRows]);
        assert.deepEqual(matrix.toDense(), dense);
        matrix.dispose();
      }
      const mask = Uint8Array.of(1, 1, 0, 0);
      const kept = sk.matrix(sk.pack(Float32Array.of(5, 0, 6, 7), 2, 2, { mask }));
      assert.equal(kept.kept, 2);
      assert.deepEqual(kept.toDense(), Float32Array.of(5, 0, 0, 0));
    });

    test("packs and unpacks n of m", () => {
      for (const [n, m] of [[1, 2], [2, 4], [2, 8], [1, 16], [3, 32]]) {
        const dense = Float32Array.from({ length: 37 * 53 }, (_, i) => ((i % 53) % m < n ? i + 1 : 0));
        const matrix = sk.nmMatrix(sk.packNm(dense, 37, 53, { n, m }));
        assert.deepEqual([matrix.rows, matrix.cols, matrix.n, matrix.m], [37, 53, n, m]);
        assert.equal(matrix.kept, dense.filter((v) => v !== 0).length);
        assert.deepEqual(matrix.toDense(), dense);
        for (const rows of [1, 2, 40]) {
          const x = Float32Array.from({ length: rows * 53 }, (_, i) => (i % 7) - 3);
          const y = matrix.linear(x, { bias: new Float32Array(37).fill(1), activation: "relu" });
          assert.equal(y.length, rows * 37);
          for (const r of [0, 36]) {
            const sum = dense.subarray(r * 53, (r + 1) * 53).reduce((all, w, k) => all + w * x[(rows - 1) * 53 + k], 1);
            assert.ok(Math.abs(y[(rows - 1) * 37 + r] - Math.max(0, sum)) <= 1e-5 * Math.abs(sum) + 1e-2, `${y} ${sum}`);
          }
        }
        matrix.dispose();
        assert.throws(() => matrix.linear(new Float32Array(53)), /NMMatrix: used after dispose/);
      }
      const mask = Uint8Array.of(0, 0, 1, 1);
      const kept = sk.nmMatrix(sk.packNm(Float32Array.of(5, 6, 0, 7), 1, 4, { n: 2, m: 4, mask }));
      assert.deepEqual(kept.toDense(), Float32Array.of(0, 0, 0, 7));
      assert.deepEqual(kept.linear(Float32Array.of(NaN, NaN, 1, 2)), Float32Array.of(14));
      kept.dispose();
    });

    test("packs, unpacks and multiplies any pattern with a bit for each weight", () => {
      for (const [rows, cols] of SHAPES) {
        const dense = numbers(rows * cols).map((w, i) => (i % 3 === 1 ? 0 : w));
        const matrix = sk.bitmapMatrix(sk.packBitmap(dense, rows, cols));
        assert.deepEqual([matrix.rows, matrix.cols, matrix.dtype], [rows, cols, "float32"]);
        assert.equal(matrix.kept, dense.filter((w) => w !== 0).length);
        assert.deepEqual(matrix.toDense(), dense);
        const bias = numbers(rows, 7);
        for (const count of [1, 2, 9, 40]) {
          const x = numbers(count * cols, 3);
          close(matrix.linear(x, { bias }), plain(dense, rows, cols, x, bias), `${rows} x ${cols}, ${count} rows`);
        }
        matrix.dispose();
        assert.throws(() => matrix.toDense(), /BitmapMatrix: used after dispose/);
      }
      const mask = Uint8Array.of(0, 1, 1, 0);
      const kept = sk.bitmapMatrix(sk.packBitmap(Float32Array.of(5, 6, 0, 7), 1, 4, { mask }));
      assert.equal(kept.kept, 2);
      assert.deepEqual(kept.toDense(), Float32Array.of(0, 6, 0, 0));
      assert.deepEqual(kept.linear(Float32Array.of(NaN, 2, 1, Infinity)), Float32Array.of(12));
      assert.match(kept.linearKernel(1), tier === "scalar" ? /^bitmap_linear_f32_decode__scalar$/ : /^bitmap_linear_f32_decode__wasm_simd128$/);
      kept.dispose();
      const halves = sk.packBitmap(Uint16Array.of(0x3f80, 0, 0x4000), 1, 3, { dtype: "bfloat16" }); // 1, 0, 2
      const narrow = sk.bitmapMatrix(halves);
      assert.deepEqual(narrow.toDense(), Uint16Array.of(0x3f80, 0, 0x4000));
      assert.deepEqual(narrow.linear(Float32Array.of(3, 4, 5)), Float32Array.of(13));
      narrow.dispose();
    });

    test("quantizes groups as GQSTensor.from_dense does", async () => {
      const model = sk.checkpoint(file);
      for (const name of ["gqs2", "gqs4", "gqs8"]) {
        const { matrix } = model.layers.get(name);
        const dense = await input(name, "float32", "dense");
        const packed = sk.packGqs(dense, matrix.rows, matrix.cols, { bits: matrix.bits, group: matrix.group, scaleDtype: matrix.scaleDtype });
        for (const part of ["values", "structure", "scale"]) {
          assert.deepEqual(packed[part], model.tensors.get(`${name}.${part}`).data, `${name}.${part}`);
        }
      }
      model.dispose();
    });

    test("unpacks and multiplies quantized groups", async () => {
      for (const [rows, cols] of SHAPES) {
        for (const [bits, group] of [[2, 16], [4, 32], [8, 64], [4, 128]]) {
          const original = numbers(rows * cols, bits);
          const mask = Uint8Array.from({ length: rows * Math.ceil(cols / group) }, (_, i) => i % 3 !== 1);
          const packed = sk.packGqs(original, rows, cols, { bits, group, mask, scaleDtype: "float32" });
          const matrix = sk.gqsMatrix(packed);
          assert.deepEqual([matrix.rows, matrix.cols, matrix.bits, matrix.group, matrix.zeros], [rows, cols, bits, group, false]);
          assert.equal(packed.scale.length, mask.reduce((all, kept) => all + kept, 0));
          const dense = matrix.toDense();
          const groups = Math.ceil(cols / group);
          const keeps = (i) => mask[Math.floor(i / cols) * groups + Math.floor((i % cols) / group)] !== 0;
          assert.equal(matrix.kept, dense.filter((_, i) => keeps(i)).length);
          const step = 1 / (2 ** (bits - 1) - 1); // of the codes: no weight here is above 1
          dense.forEach((w, i) => assert.ok(keeps(i) ? Math.abs(w - original[i]) <= 0.5001 * step : w === 0, `${i}: ${w}`));
          for (const count of [1, 3, 40]) {
            const x = numbers(count * cols, 5);
            close(matrix.linear(x), plain(dense, rows, cols, x), `${rows} x ${cols}, w${bits}g${group}, ${count} rows`);
            const rounded = plain(dense, rows, cols, roundGroups(x, cols, group));
            close(matrix.linear(x, { int8Activations: true }), rounded, `${rows} x ${cols}, w${bits}g${group}, int8 x`);
          }
          matrix.dispose();
        }
      }
      // Weights with zero-points, and with 8-bit scales times factors of the rows.
      const model = sk.checkpoint(file);
      for (const [name, zeros, scaleDtype] of [["gqs4zero", true, "float32"], ["gqs4row", false, "uint8"]]) {
        const { matrix } = model.layers.get(name);
        assert.deepEqual([matrix.zeros, matrix.scaleDtype, matrix.dtype], [zeros, scaleDtype, "int8"]);
        const dense = matrix.toDense();
        const original = await input(name, "float32", "dense");
        dense.forEach((w, i) => assert.ok(original[i] === 0 ? w === 0 : Math.abs(w - original[i]) < 0.4, `${name} ${i}: ${w} for ${original[i]}`));
        const x = numbers(3 * matrix.cols, 5);
        close(matrix.linear(x), plain(dense, matrix.rows, matrix.cols, x), name);
      }
      assert.equal(model.layers.get("gqs4").matrix.linearKernel(1), tier === "scalar" ? "gqs_linear_w4g16_decode__scalar" : "gqs_linear_w4g16_decode__wasm_simd128");
      assert.match(model.layers.get("gqs4").matrix.linearKernel(40, { int8Activations: true }), /^gqs_linear_w4g16_batch__/);
      model.dispose();
    });

    test("quantized groups: small and large weights, and what is pruned meets no NaN", () => {
      const zero = sk.gqsMatrix(sk.packGqs(new Float32Array(32), 1, 32));
      assert.deepEqual([zero.kept, zero.linear(new Float32Array(32).fill(NaN))], [0, new Float32Array(1)]);
      zero.dispose();
      const tiny = sk.packGqs(new Float32Array(16).fill(1e-30), 1, 16); // rounds to 0, with the least scale
      assert.deepEqual(tiny.scale, Uint16Array.of(0x0400));
      const all = sk.packGqs(new Float32Array(16), 1, 16, { mask: Uint8Array.of(1) });
      assert.deepEqual(all.scale, Uint16Array.of(0x3c00)); // 1
      const dense = new Float32Array(32).fill(7);
      const half = sk.gqsMatrix(sk.packGqs(dense, 1, 32, { mask: Uint8Array.of(0, 1) }));
      assert.deepEqual(half.toDense(), dense.map((w, i) => (i < 16 ? 0 : w)));
      const x = new Float32Array(32).fill(NaN, 0, 16).fill(1, 16);
      assert.deepEqual(half.linear(x, { activation: "relu" }), Float32Array.of(112));
      half.dispose();
    });

    test("keeps activations in the module, also while its memory grows", () => {
      const matrix = sk.matrix(sk.pack(Float32Array.of(1, 0, 0, 2), 2, 2));
      const x = sk.buffer(2);
      const y = sk.buffer(2);
      x.array.set([3, 4]);
      const large = sk.buffer(40e6); // moves the memory
      assert.equal(matrix.linear(x, { out: y }), y);
      assert.deepEqual(y.array, Float32Array.of(3, 8));
      matrix.linear(y, { out: x, bias: Float32Array.of(-9, 1), activation: "relu" });
      assert.deepEqual(x.array, Float32Array.of(0, 17));
      const own = new Float32Array(2);
      assert.equal(matrix.linear(x, { out: own }), own);
      assert.deepEqual(own, Float32Array.of(0, 34));
      assert.equal(matrix.linear(own, { out: large }), large); // longer than needed
      assert.deepEqual(large.array.slice(0, 3), Float32Array.of(0, 68, 0));
      const short = sk.buffer(1);
      assert.throws(() => matrix.linear(own, { out: short }), /csr_linear: out must have 2 elements, got 1/);
      for (const buffer of [x, y, large, short]) buffer.dispose();
      assert.throws(() => x.array, /Buffer: used after dispose/);
      matrix.dispose();
      matrix.dispose(); // twice is harmless
    });

    test("relu keeps NaN, and pruned weights never meet infinity", () => {
      const matrix = sk.matrix(sk.pack(Float32Array.of(1, 0, 0, 1), 2, 2));
      for (const rows of [1, 40]) {
        const x = new Float32Array(2 * rows).fill(Infinity);
        x[1] = NaN;
        const y = matrix.linear(x, { activation: "relu" });
        assert.equal(y[0], Infinity);
        assert.ok(Number.isNaN(y[1]));
      }
      matrix.dispose();
    });

    test("does not leak: a thousand matrices in the memory of one", () => {
      const packed = sk.pack(new Float32Array(256 * 256).fill(1), 256, 256);
      const once = sk.matrix(packed);
      once.linear(new Float32Array(256));
      once.dispose();
      const room = sk.buffer(1).array.buffer.byteLength;
      for (let i = 0; i < 1000; ++i) {
        const matrix = sk.matrix(packed);
        matrix.linear(new Float32Array(256 * 4));
        matrix.dispose();
      }
      assert.equal(sk.buffer(1).array.buffer.byteLength, room);
    });

    test("zero rows", () => {
      const matrix = sk.matrix(sk.pack(Float32Array.of(1, 0, 0, 2), 2, 2));
      assert.equal(matrix.linear(new Float32Array(0), { rows: 0 }).length, 0);
      assert.equal(matrix.conv2d(new Float32Array(0), { height: 0, width: 5 }).length, 0);
    });

    test("bad input is an error that names operator, argument, expected, got", () => {
      const packed = sk.pack(Float32Array.of(1, 0, 0, 2), 2, 2);
      const w = sk.matrix(packed);
      const packedNm = sk.packNm(Float32Array.of(1, 0, 0, 2), 1, 4, { n: 2, m: 4 });
      const nm = sk.nmMatrix(packedNm);
      const packedBitmap = sk.packBitmap(Float32Array.of(1, 0, 0, 2), 1, 4);
      const bitmap = sk.bitmapMatrix(packedBitmap);
      const packedGqs = sk.packGqs(Float32Array.of(1, 0, 0, 2), 1, 4);
      const gqs = sk.gqsMatrix(packedGqs);
      const x = new Float32Array(2);
      const bad = [
        [() => w.linear([1, 2]), TypeError, /^csr_linear: x must be a Float32Array for float32, got 1,2$/],
        [() => w.linear(new Float32Array(3), { rows: 1 }), RangeError, /^csr_linear: x must have 2 elements, got 3$/],
        [() => w.linear(new Float32Array(3)), RangeError, /^csr_linear: rows must be an integer in \[0, 2\^31\), got 1\.5$/],
        [() => w.linear(x, { dtype: "float64" }), TypeError, /^csr_linear: dtype must be one of float32, bfloat16, float16, got "float64"$/],
        [() => w.linear(x, { dtype: "float16" }), TypeError, /^csr_linear: x must be a Uint16Array for float16, got Float32Array\(2\)$/],
        [() => w.linear(x, { bias: new Float32Array(3) }), RangeError, /^csr_linear: bias must have 2 elements, got 3$/],
        [() => w.linear(x, { out: new Float32Array(1) }), RangeError, /^csr_linear: out must have 2 elements, got 1$/],
        [() => w.linear(x, { activation: "tanh" }), TypeError, /^csr_linear: activation must be one of none, .* got "tanh"$/],
        [() => w.conv2d(x, { height: 1 }), RangeError, /^csr_conv2d: width must be an integer .* got undefined$/],
        [() => w.conv2d(x, { height: 1, width: 1, stride: 0 }), RangeError, /^csr_conv2d: stride must be an integer in \[1, 2\^31\), got 0$/],
        [() => sk.pack(x, 2, 2), RangeError, /^sparsekern.pack: dense must have 4 elements, got 2$/],
        [() => sk.pack(x, 0, 2), RangeError, /^sparsekern.pack: rows must be an integer in \[1, 2\^31\), got 0$/],
        [() => sk.pack(x, 1, 2, { blockRows: 3 }), TypeError, /^sparsekern.pack: blockRows must be one of 1, 2, 4, got 3$/],
        [() => sk.matrix({ ...packed, dtype: "int8", values: new Int8Array(16) }), RangeError, /^csr/],
        [() => sk.packNm(x, 1, 2, { n: 1, m: 3 }), TypeError, /^sparsekern.packNm: m must be one of 2, 4, 8, 16, 32, got 3$/],
        [() => sk.packNm(x, 1, 2), TypeError, /^sparsekern.packNm: m must be one of 2, 4, 8, 16, 32, got undefined$/],
        [() => sk.packNm(x, 1, 2, { n: 2, m: 2 }), RangeError, /^sparsekern.packNm: n must be an integer in \[1, 2\), got 2$/],
        [() => sk.packNm(Float32Array.of(1, 2), 1, 2, { n: 1, m: 2 }), RangeError, /^nm: row 0, columns 0 to 1 must keep at most 1 of 2, got 2$/],
        [() => sk.packNm(x, 2, 2, { n: 1, m: 2 }), RangeError, /^sparsekern.packNm: dense must have 4 elements, got 2$/],
        [() => sk.nmMatrix(packed), RangeError, /^nm: structure must begin with SKNM/],
        [() => sk.nmMatrix({ ...packedNm, scale: x }), RangeError, /^nm: scale must have 0 elements, got 2$/],
        [() => sk.nmMatrix({ ...packedNm, values: x }), RangeError, /^nm: values must have/],
        [() => nm.linear(x, { rows: 1 }), RangeError, /^nm_linear: x must have 4 elements, got 2$/],
        [() => nm.linear(new Float32Array(4), { activation: "tanh" }), TypeError, /^nm_linear: activation must be one of/],
        [() => sk.matrix({ ...packed, scale: x }), RangeError, /^csr: scale must have 0 elements, got 2$/],
        [() => sk.packBitmap(x, 2, 2), RangeError, /^sparsekern.packBitmap: dense must have 4 elements, got 2$/],
        [() => sk.packBitmap(x, 1, 2, { mask: new Uint8Array(3) }), TypeError, /^sparsekern.packBitmap: mask must be a Uint8Array of 2, got Uint8Array\(3\)$/],
        [() => sk.packBitmap(x, 1, 2, { dtype: "int8" }), TypeError, /^sparsekern.packBitmap: dtype must be one of float32, bfloat16, float16, got "int8"$/],
        [() => sk.bitmapMatrix(packed), RangeError, /^bitmap: structure must begin with SKBM$/],
        [() => sk.bitmapMatrix({ ...packedBitmap, scale: x }), RangeError, /^bitmap: scale must have 0 elements, got 2$/],
        [() => sk.bitmapMatrix({ ...packedBitmap, values: new Float32Array(3) }), RangeError, /^bitmap: values must have 2 elements, got 3$/],
        [() => sk.bitmapMatrix({ ...packedBitmap, structure: x }), TypeError, /^sparsekern.bitmapMatrix: structure must be a Uint8Array, got Float32Array\(2\)$/],
        [() => bitmap.linear(x, { rows: 1 }), RangeError, /^bitmap_linear: x must have 4 elements, got 2$/],
        [() => bitmap.linearKernel(-1), RangeError, /^bitmap_linear: rows must be an integer in \[0, 2\^31\), got -1$/],
        [() => sk.packGqs(x, 1, 2, { bits: 3 }), TypeError, /^sparsekern.packGqs: bits must be one of 2, 4, 8, got 3$/],
        [() => sk.packGqs(x, 1, 2, { group: 8 }), TypeError, /^sparsekern.packGqs: group must be one of 16, 32, 64, 128, got 8$/],
        [() => sk.packGqs(x, 1, 2, { scaleDtype: "uint8" }), TypeError, /^sparsekern.packGqs: scaleDtype must be one of float32, bfloat16, float16, got "uint8"$/],
        [() => sk.packGqs(x, 1, 2, { mask: new Uint8Array(2) }), TypeError, /^sparsekern.packGqs: mask must be a Uint8Array of 1, got Uint8Array\(2\)$/],
        [() => sk.packGqs(x, 2, 2), RangeError, /^sparsekern.packGqs: dense must have 4 elements, got 2$/],
        [() => sk.packGqs(Float32Array.of(1, NaN), 2, 1), RangeError, /^gqs: weights must be finite where they are kept, got NaN or infinity \(row 1, group 0\)$/],
        [() => sk.packGqs(Float32Array.of(1, 1e30), 2, 1), RangeError, /^gqs: scales must be numbers of their dtype, got one beyond \(row 1, group 0\)$/],
        [() => sk.gqsMatrix(packed), TypeError, /^sparsekern.gqsMatrix: scale must be a Uint16Array for float16, got null$/],
        [() => sk.gqsMatrix({ ...packedGqs, scaleDtype: "int8" }), TypeError, /^sparsekern.gqsMatrix: scaleDtype must be one of float32, bfloat16, float16, uint8, got "int8"$/],
        [() => sk.gqsMatrix({ ...packedGqs, values: x }), TypeError, /^sparsekern.gqsMatrix: values must be a Int8Array for int8, got Float32Array\(2\)$/],
        [() => sk.gqsMatrix({ ...packedGqs, structure: packed.structure }), RangeError, /^gqs: structure must begin with SKGQ$/],
        [() => sk.gqsMatrix({ ...packedGqs, values: new Int8Array(63) }), RangeError, /^gqs: values must have 64 bytes, got 63$/],
        [() => sk.gqsMatrix({ ...packedGqs, scale: new Uint16Array(2) }), RangeError, /^gqs: scale must have 1 elements, got 2$/],
        [() => sk.gqsMatrix({ ...packedGqs, scale: Uint16Array.of(0) }), RangeError, /^gqs: scales must be finite and not 0, got 0\.0+ for kept group 0$/],
        [() => sk.gqsMatrix({ ...packedGqs, scale: Uint8Array.of(1), scaleDtype: "uint8" }), RangeError, /^gqs: scales must be 8 bits where rows have a factor, and only there$/],
        [() => gqs.linear(x, { rows: 1 }), RangeError, /^gqs_linear: x must have 4 elements, got 2$/],
        [() => gqs.linear(new Float32Array(4), { int8Activations: 1 }), TypeError, /^gqs_linear: int8Activations must be one of false, true, got 1$/],
        [() => gqs.linear(new Float32Array(4), { activation: "tanh" }), TypeError, /^gqs_linear: activation must be one of/],
        [() => sk.buffer(2 ** 30, "float32"), RangeError, /^sparsekern: no memory for 4294967296 bytes$/],
      ];
      for (const [call, type, message] of bad) {
        assert.throws(call, (error) => error instanceof type && message.test(error.message) ? true : assert.fail(`${error}`));
      }
      assert.deepEqual(w.linear(Float32Array.of(1, 1)), Float32Array.of(1, 2)); // still works
    });

    const checked = Float32Array.from({ length: 20 * 20 }, (_, i) => (i % 4 < 2 ? 1 : 0));
    for (const [format, pack, create] of [
      ["csr", () => sk.pack(checked, 20, 20), "matrix"],
      ["N:M", () => sk.packNm(checked, 20, 20, { n: 2, m: 4 }), "nmMatrix"],
      ["bitmap", () => sk.packBitmap(checked, 20, 20), "bitmapMatrix"],
      ["gqs", () => sk.packGqs(checked, 20, 20), "gqsMatrix"],
    ]) {
      test(`every damaged byte of a packed structure is refused or harmless: ${format}`, () => {
        const packed = pack();
        let refused = 0;
        for (let at = 0; at < packed.structure.length; ++at) {
          const structure = packed.structure.slice();
          structure[at] ^= 0x81;
          try {
            const matrix = sk[create]({ ...packed, structure });
            matrix.linear(new Float32Array(matrix.cols * 3));
            matrix.dispose();
          } catch (error) {
            assert.ok(error instanceof RangeError, `${error}`);
            ++refused;
          }
        }
        assert.ok(refused > packed.structure.length / 2, `${refused} of ${packed.structure.length}`);
      });
    }

    test("a checkpoint whose layers are not what they say is refused", () => {
      sk.checkpoint(edited(() => {})).dispose();
      for (const [change, message] of [
        [(described, header) => delete header["gqs8.scale"], /^sparsekern.checkpoint: layer gqs8 must have a scale$/],
        [({ layers }) => (layers["bitmap-tied"].kind = "nm_linear"), /^sparsekern.checkpoint: layer "bitmap-tied" must be tied to layers of its format$/],
        [({ layers }) => (layers.bitmap.kind = "coo_linear"), /^sparsekern.checkpoint: layer bitmap has the unknown kind coo_linear$/],
        [({ layers }) => (layers.gqs2.shape = [1, 2]), /^sparsekern.checkpoint: layer "gqs2" must have shape 1,2, got 40,130$/],
        [({ layers }) => (layers.gqs2.kind = "bitmap_linear"), /^sparsekern.bitmapMatrix: scale must be a Float32Array for float32, got Uint16Array/],
      ]) {
        assert.throws(() => sk.checkpoint(edited(change)), (error) => message.test(error.message) ? true : assert.fail(`${error}`));
      }
    });

    test("a damaged checkpoint is refused, wherever a bit flips", () => {
      for (const length of [0, 7, 8, 100, file.length - 1]) {
        assert.throws(() => sk.checkpoint(file.slice(0, length)), RangeError);
      }
      const header = 8 + new DataView(file.buffer).getUint32(0, true);
      const free = sk.buffer(1).array.buffer.byteLength;
      for (let at = 0; at < file.length; at += Math.floor(file.length / 300)) {
        const damaged = file.slice();
        damaged[at] ^= 4;
        try {
          sk.checkpoint(damaged).dispose();
        } catch (error) {
          assert.ok(error instanceof RangeError, `byte ${at}: ${error.stack}`);
          continue;
        }
        assert.ok(at < header, `byte ${at} went unnoticed`); // some bytes of the header mean nothing
      }
      assert.ok(sk.buffer(1).array.buffer.byteLength <= free + 65536);
      assert.throws(() => sk.checkpoint("model.safetensors"), TypeError);
    });
  });
}

test("load", async () => {
  assert.ok(hasSimd() && hasRelaxedSimd());
  assert.deepEqual((await load()).isa, ["scalar", "simd128", "relaxed"]);
  await assert.rejects(load({ tier: "avx2" }), /sparsekern.load: tier must be one of auto, relaxed, simd128, scalar, got "avx2"/);
  const bytes = await readFile(new URL("../../wasm/dist/sparsekern-scalar.wasm", import.meta.url));
  assert.match((await load({ wasm: bytes })).version, /^\d+\.\d+\.\d+$/);
  await assert.rejects(load({ wasm: bytes.subarray(0, 100) }), WebAssembly.CompileError);
  await assert.rejects(load({ wasm: "./dist/missing.wasm" }), /ENOENT/);
});
