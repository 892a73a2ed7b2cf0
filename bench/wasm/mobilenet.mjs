// SPDX-License-Identifier: Apache-2.0
// All 1x1 convolutions of MobileNet v1 at 224x224 (arXiv:1704.04861, table 1), one after the other: sparse here
// against dense in onnxruntime-web on one thread, with the same pruned weights. For Node and browsers.
import { check, median, random, summary, timeInTurns } from "./measure.mjs";
import { chainModel } from "./onnx.mjs";

// [cols, rows, side of the output, stride]: the stride stands for the depthwise layer between.
const LAYERS = [
  [32, 64, 112, 1], [64, 128, 56, 2], [128, 128, 56, 1], [128, 256, 28, 2], [256, 256, 28, 1],
  [256, 512, 14, 2], ...Array(5).fill([512, 512, 14, 1]), [512, 1024, 7, 2], [1024, 1024, 7, 1],
];

export function makeLayers(sparsity) {
  const uniform = random(1);
  return LAYERS.map(([cols, rows, size, stride]) => {
    const scale = Math.sqrt(6 / (cols * (1 - sparsity))); // keeps the activations' variance
    const weight = Float32Array.from({ length: rows * cols }, () =>
      uniform() < sparsity ? 0 : scale * (2 * uniform() - 1 || 0.5));
    const bias = Float32Array.from({ length: rows }, () => uniform() - 0.5);
    return { cols, rows, size, stride, weight, bias };
  });
}

export class SparseChain {
  constructor(sk, layers) {
    // Two buffers take turns, so that what one layer wrote is still in the cache when the next reads it.
    const largest = Math.max(...layers.map((layer) => layer.rows * layer.size ** 2));
    this.buffers = [sk.buffer(largest), sk.buffer(largest)];
    this.steps = layers.map((layer, i) => {
      const matrix = sk.matrix(sk.pack(layer.weight, layer.rows, layer.cols));
      return { ...layer, matrix, y: this.buffers[i % 2] };
    });
    const { cols, size, stride } = layers[0];
    this.x = sk.buffer(cols * (size * stride) ** 2);
    this.flops = this.steps.reduce((sum, s) => sum + 2 * s.matrix.kept * s.size ** 2, 0);
    this.kernel = this.steps[0].matrix.conv2dKernel();
  }
  runStep({ matrix, size, stride, bias, y }, x) {
    return matrix.conv2d(x, { height: size * stride, width: size * stride, stride, bias, activation: "relu", out: y });
  }
  run(input) {
    this.x.array.set(input);
    const y = this.steps.reduce((x, step) => this.runStep(step, x), this.x);
    const { rows, size } = this.steps[this.steps.length - 1];
    return y.array.slice(0, rows * size ** 2);
  }
  dispose() {
    for (const thing of [this.x, ...this.buffers, ...this.steps.map((step) => step.matrix)]) thing.dispose();
  }
}

/**
 * ort: the onnxruntime-web module, one thread set. progress(text) is called between measurements. Answers
 * rows, one for each sparsity: sparse and dense milliseconds, their ratio, effective GFLOP/s, per layer too.
 */
export async function measure({ sk, ort, sparsities = [0.7, 0.8, 0.9, 0.95], repeats = 30, progress = () => {} }) {
  const rows = [];
  for (const sparsity of sparsities) {
    progress(`${sparsity * 100} % zeros`);
    const layers = makeLayers(sparsity);
    const { cols, size, stride } = layers[0];
    const side = size * stride;
    const uniform = random(7);
    const input = Float32Array.from({ length: cols * side ** 2 }, () => 2 * uniform() - 1);
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    // Two ways to write the strides; the faster one is the dense time.
    const dense = [];
    for (const pooled of [false, true]) {
      const session = await ort.InferenceSession.create(chainModel(layers, pooled), options);
      dense.push({ session, name: session.outputNames[0] });
    }
    const chain = new SparseChain(sk, layers);
    const runDense = async ({ session, name }) => {
      const result = await session.run({ x: new ort.Tensor("float32", input, [1, cols, side, side]) });
      return result[name].data;
    };
    const want = await runDense(dense[0]);
    check(await runDense(dense[1]), want, "dense with pooling");
    check(chain.run(input), want, "sparse");
    const [sparse, ...denseTimes] = await timeInTurns(repeats, [() => chain.run(input), ...dense.map((one) => () => runDense(one))]);
    dense.forEach((one, i) => (one.times = denseTimes[i]));
    const best = dense.reduce((a, b) => (median(a.times) <= median(b.times) ? a : b));
    const layerTimes = layers.map(() => []);
    for (let i = 0; i < repeats; ++i) {
      let x = chain.x;
      chain.steps.forEach((step, n) => {
        const begin = performance.now();
        x = chain.runStep(step, x);
        layerTimes[n].push(performance.now() - begin);
      });
    }
    const denseFlops = layers.reduce((sum, l) => sum + 2 * l.rows * l.cols * l.size ** 2, 0);
    rows.push({
      sparsity,
      kernel: chain.kernel,
      sparse: summary(sparse),
      dense: summary(best.times),
      dense_variant: best === dense[0] ? "strided" : "pooled",
      ratio: median(best.times) / median(sparse),
      ratio_of_minima: Math.min(...best.times) / Math.min(...sparse),
      sparse_gflops: chain.flops / median(sparse) / 1e6,
      dense_gflops: denseFlops / median(best.times) / 1e6,
      layers: chain.steps.map(({ matrix, size }, n) => ({
        shape: `${matrix.rows}x${matrix.cols}@${size}`,
        median_ms: median(layerTimes[n]),
        gflops: (2 * matrix.kept * size ** 2) / median(layerTimes[n]) / 1e6,
      })),
    });
    chain.dispose();
    for (const { session } of dense) await session.release();
  }
  return rows;
}
