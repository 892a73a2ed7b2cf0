// SPDX-License-Identifier: Apache-2.0
// node bench/wasm/bench.mjs [--tier simd128|scalar] [--sparsities 0.8,0.9] [--repeats 30]
// One JSON line for each sparsity on standard output. First: wasm/build.sh, and `npm install` in wasm/.
import { execFileSync } from "node:child_process";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { load } from "../../wasm/sparsekern.mjs";
import { measure } from "./mobilenet.mjs";

const { values } = parseArgs({
  options: {
    tier: { type: "string", default: "auto" },
    sparsities: { type: "string", default: "0.7,0.8,0.9,0.95" },
    repeats: { type: "string", default: "30" },
  },
});
const ort = await import(new URL("../../wasm/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs", import.meta.url));
ort.env.wasm.numThreads = 1;
const sk = await load({ tier: values.tier });
let commit = null;
try {
  commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { cwd: import.meta.dirname, encoding: "utf8" }).trim();
} catch {
  // Not a checkout.
}
const rows = await measure({
  sk,
  ort,
  sparsities: values.sparsities.split(",").map(Number),
  repeats: Number(values.repeats),
  progress: (text) => console.error(text),
});
for (const row of rows) {
  console.log(JSON.stringify({
    bench: "wasm_mobilenet_v1_1x1",
    commit,
    machine: cpus()[0].model,
    engine: `node ${process.version}, V8 ${process.versions.v8}`,
    isa: sk.isa,
    threads: 1,
    dense_runtime: `onnxruntime-web ${ort.env.versions?.web ?? ""}`.trim(),
    ...row,
  }));
}
