// SPDX-License-Identifier: Apache-2.0
// Runs a WASI program under Node and exits with its status: node .ci/wasi_node.mjs FILE [ARGS...]
import { readFile } from "node:fs/promises";
import { WASI } from "node:wasi";
import "../wasm/relaxed_simd.mjs";

const [file, ...args] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [file, ...args], env: process.env });
const module = await WebAssembly.compile(await readFile(file));
const instance = await WebAssembly.instantiate(module, wasi.getImportObject());
process.exitCode = wasi.start(instance);
