// SPDX-License-Identifier: Apache-2.0
// node bench/wasm/bench.mjs [--tier relaxed|simd128|scalar] [--sparsities 0.8,0.9] [--patterns 2:4,2:8] [--repeats 30]
// One JSON line for each sparsity and pattern on standard output; an empty list leaves a part out. First: wasm/build.sh, and `npm install` in wasm/.
import { execFileSync } from "node:child_process";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import "../../wasm/relaxed_simd.mjs";
import { load } from "../../wasm/sparsekern.mjs";
import { measure } from "./mobilenet.mjs";
import { measureNm, PATTERNS } from "./nm_linear.mjs";

const { values } = parseArgs({
  options: {
    tier: { type: "string", default: "auto" },
    sparsities: { type: "string", default: "0.7,0.8,0.9,0.95" },
    patterns: { type: "string", default: PATTERNS.join() },
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
const list = (text) => text.split(",").filter((item) => item !== "");
const common = { sk, ort, repeats: Number(values.repeats), progress: (text) => console.error(text) };
const mobilenet = await measure({ ...common, sparsities: list(values.sparsities).map(Number) });
const nm = await measureNm({ ...common, patterns: list(values.patterns) });
const named = [
  ...mobilenet.map((row) => ({ bench: "wasm_mobilenet_v1_1x1", case: "MobileNet v1 at 224", ...row })),
  ...nm.map((row) => ({ bench: "wasm_nm_linear", ...row })),
];
for (const { bench, ...row } of named) {
  console.log(JSON.stringify({
    bench,
    commit,
    machine: cpus()[0].model,
    engine: `node ${process.version}, V8 ${process.versions.v8}`,
    isa: sk.isa,
    threads: 1,
    dense_runtime: `onnxruntime-web ${ort.env.versions?.web ?? ""}`.trim(),
    ...row,
  }));
}
