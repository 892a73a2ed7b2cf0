// SPDX-License-Identifier: Apache-2.0
// N:M linear layers in a chain against the same weights, dense, in onnxruntime-web on one thread.
import { check, median, random, summary, timeInTurns } from "./measure.mjs";
import { linearModel } from "./onnx.mjs";

const X_ROWS = 64;
const FEATURES = [1024, 1024, 1024]; // two layers
export const PATTERNS = ["2:4", "2:8", "1:16"];

function makeLayers(n, m) {
  const uniform = random(1);
  return FEATURES.slice(1).map((rows, i) => {
    const cols = FEATURES[i];
    const scale = Math.sqrt((6 * m) / (cols * n)); // keeps the activations' variance
    const weight = new Float32Array(rows * cols);
    for (let first = 0; first < weight.length; first += m) {
      const places = Array.from({ length: m }, (_, k) => [uniform(), k]).sort((a, b) => a[0] - b[0]);
      for (const [, k] of places.slice(0, n)) weight[first + k] = scale * (2 * uniform() - 1 || 0.5);
    }
    return { cols, rows, weight, bias: Float32Array.from({ length: rows }, () => uniform() - 0.5) };
  });
}

/** As `measure` of mobilenet.mjs: one row for each pattern. */
export async function measureNm({ sk, ort, patterns = PATTERNS, repeats = 30, progress = () => {} }) {
  const rows = [];
  for (const pattern of patterns) {
    progress(pattern);
    const [n, m] = pattern.split(":").map(Number);
    const layers = makeLayers(n, m);
    const uniform = random(7);
    const input = Float32Array.from({ length: X_ROWS * FEATURES[0] }, () => 2 * uniform() - 1);
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    const matrices = layers.map(({ weight, rows, cols }) => sk.nmMatrix(sk.packNm(weight, rows, cols, { n, m })));
    const buffers = FEATURES.map((features) => sk.buffer(X_ROWS * features));
    const runSparse = () => {
      buffers[0].array.set(input);
      matrices.forEach((matrix, i) =>
        matrix.linear(buffers[i], { rows: X_ROWS, bias: layers[i].bias, activation: "relu", out: buffers[i + 1] }));
      return buffers[buffers.length - 1].array.slice();
    };
    // Two ways to write a layer; the faster one is the dense time.
    const dense = [];
    for (const gemm of [true, false]) {
      const session = await ort.InferenceSession.create(linearModel(layers, X_ROWS, gemm), options);
      const run = async () => {
        const result = await session.run({ x: new ort.Tensor("float32", input, [X_ROWS, FEATURES[0]]) });
        return result[session.outputNames[0]].data;
      };
      dense.push({ session, run, variant: gemm ? "gemm" : "matmul" });
    }
    const want = await dense[0].run();
    check(await dense[1].run(), want, "dense as a product and a sum");
    check(runSparse(), want, "sparse");
    const [sparse, ...denseTimes] = await timeInTurns(repeats, [runSparse, ...dense.map(({ run }) => run)]);
    const best = median(denseTimes[0]) <= median(denseTimes[1]) ? 0 : 1;
    const flops = 2 * X_ROWS * layers.reduce((sum, layer) => sum + layer.rows * layer.cols, 0);
    rows.push({
      case: `${pattern}, ${X_ROWS} rows, ${FEATURES.slice(1).join("-")}`,
      sparsity: 1 - n / m,
      kernel: matrices[0].linearKernel(X_ROWS),
      sparse: summary(sparse),
      dense: summary(denseTimes[best]),
      dense_variant: dense[best].variant,
      ratio: median(denseTimes[best]) / median(sparse),
      ratio_of_minima: Math.min(...denseTimes[best]) / Math.min(...sparse),
      sparse_gflops: (flops * n) / m / median(sparse) / 1e6,
      dense_gflops: flops / median(denseTimes[best]) / 1e6,
    });
    for (const thing of [...matrices, ...buffers]) thing.dispose();
    for (const { session } of dense) await session.release();
  }
  return rows;
}
