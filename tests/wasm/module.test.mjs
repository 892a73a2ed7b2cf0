// SPDX-License-Identifier: Apache-2.0
// node --test, with FIXTURE=<folder of fixture.py>: results of both tiers go there, for `fixture.py check`.
import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { hasSimd, load } from "../../wasm/sparsekern.mjs";

const folder = process.env.FIXTURE;
assert.ok(folder, "FIXTURE must name the folder that fixture.py wrote");
const file = new Uint8Array(await readFile(join(folder, "model.safetensors")));
const cases = JSON.parse(await readFile(join(folder, "cases.json"), "utf8"));

async function input(name, dtype) {
  const bytes = new Uint8Array(await readFile(join(folder, `${name}.x`))).slice();
  return dtype === "float32" ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}

for (const tier of ["simd128", "scalar"]) {
  describe(tier, () => {
    let sk;
    before(async () => {
      sk = await load({ tier });
    });

    test("runs the kernels of its tier", () => {
      assert.deepEqual(sk.isa, tier === "scalar" ? ["scalar"] : ["scalar", "simd128"]);
      const matrix = sk.matrix(sk.pack(Float32Array.of(1, 0, 0, 2), 2, 2));
      assert.ok(matrix.linearKernel(1).endsWith(tier === "scalar" ? "decode__scalar" : "decode__wasm_simd128"));
      assert.ok(matrix.conv2dKernel().startsWith("csr_conv2d_r1_f32_batch__"));
      matrix.dispose();
    });

    test("multiplies the layers of a checkpoint", async () => {
      const model = sk.checkpoint(file);
      assert.equal(model.layers.get("one").matrix, model.layers.get("tanh").matrix); // tied
      assert.equal(model.layers.get("nm").matrix, model.layers.get("nm4").matrix);
      const { matrix: nm } = model.layers.get("nm4");
      assert.deepEqual([nm.rows, nm.cols, nm.n, nm.m, nm.kept], [130, 250, 2, 4, 130 * (62 * 2 + 2)]);
      assert.ok(nm.linearKernel(1).endsWith(tier === "scalar" ? "decode__scalar" : "decode__wasm_simd128"));
      for (const { name, layer: layerName, dtype, shape } of cases) {
        const { matrix, bias, activation, stride, kind } = model.layers.get(layerName);
        const x = await input(name, dtype);
        const options = { dtype, bias, activation };
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
        [() => sk.buffer(2 ** 30, "float32"), RangeError, /^sparsekern: no memory for 4294967296 bytes$/],
      ];
      for (const [call, type, message] of bad) {
        assert.throws(call, (error) => error instanceof type && message.test(error.message) ? true : assert.fail(`${error}`));
      }
      assert.deepEqual(w.linear(Float32Array.of(1, 1)), Float32Array.of(1, 2)); // still works
    });

    test("every damaged byte of a packed structure is refused or harmless", () => {
      const packed = sk.pack(Float32Array.from({ length: 20 * 20 }, (_, i) => (i % 3 ? 0 : 1)), 20, 20);
      let refused = 0;
      for (let at = 0; at < packed.structure.length; ++at) {
        const structure = packed.structure.slice();
        structure[at] ^= 0x81;
        try {
          const matrix = sk.matrix({ ...packed, structure });
          matrix.linear(new Float32Array(matrix.cols * 3));
          matrix.dispose();
        } catch (error) {
          assert.ok(error instanceof RangeError, `${error}`);
          ++refused;
        }
      }
      assert.ok(refused > packed.structure.length / 2, `${refused} of ${packed.structure.length}`);
    });

    test("every damaged byte of a packed N:M structure is refused or harmless", () => {
      const dense = Float32Array.from({ length: 20 * 20 }, (_, i) => (i % 4 < 2 ? 1 : 0));
      const packed = sk.packNm(dense, 20, 20, { n: 2, m: 4 });
      let refused = 0;
      for (let at = 0; at < packed.structure.length; ++at) {
        const structure = packed.structure.slice();
        structure[at] ^= 0x81;
        try {
          const matrix = sk.nmMatrix({ ...packed, structure });
          matrix.linear(new Float32Array(matrix.cols * 3));
          matrix.dispose();
        } catch (error) {
          assert.ok(error instanceof RangeError, `${error}`);
          ++refused;
        }
      }
      assert.ok(refused > packed.structure.length / 2, `${refused} of ${packed.structure.length}`);
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
  assert.ok(hasSimd());
  assert.deepEqual((await load()).isa, ["scalar", "simd128"]);
  await assert.rejects(load({ tier: "avx2" }), /sparsekern.load: tier must be one of auto, simd128, scalar, got "avx2"/);
  const bytes = await readFile(new URL("../../wasm/dist/sparsekern-scalar.wasm", import.meta.url));
  assert.match((await load({ wasm: bytes })).version, /^\d+\.\d+\.\d+$/);
  await assert.rejects(load({ wasm: bytes.subarray(0, 100) }), WebAssembly.CompileError);
  await assert.rejects(load({ wasm: "./dist/missing.wasm" }), /ENOENT/);
});
