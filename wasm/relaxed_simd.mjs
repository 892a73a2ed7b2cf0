// SPDX-License-Identifier: Apache-2.0
// For tests and benchmarks, imported before a module is compiled: Node 20 has relaxed SIMD behind a
// flag of V8, later ones have it and not the flag.
import v8 from "node:v8";
import { hasRelaxedSimd } from "./sparsekern.mjs";

if (!hasRelaxedSimd()) v8.setFlagsFromString("--experimental-wasm-relaxed-simd");
