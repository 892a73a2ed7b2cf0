#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The WebAssembly module: builds its tiers, runs one checkpoint through wasmtime and Node and compares with the
# oracle, checks the TypeScript types, opens the page in a headless Chromium. Needs the package built in .venv
# (make build) with ziglang and wasmtime beside it, Node 20+ with npm, and chromium (or $CHROMIUM).
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
fixture=$(mktemp -d)
trap 'rm -rf "$fixture"' EXIT

wasm/build.sh
[[ -x wasm/node_modules/.bin/tsc && -d wasm/node_modules/onnxruntime-web ]] ||
  npm --prefix wasm install --no-audit --no-fund --loglevel=error

echo "--- one checkpoint, two engines, three tiers"
"$python" tests/wasm/fixture.py write "$fixture"
for tier in relaxed simd128 scalar; do
  "$python" tests/wasm/wasmtime_host.py "wasm/dist/sparsekern-$tier.wasm" "$fixture" "wasmtime-$tier"
done
FIXTURE=$fixture node --test --test-reporter=spec tests/wasm/module.test.mjs
"$python" tests/wasm/fixture.py check "$fixture" {wasmtime,node}-{relaxed,simd128,scalar}

echo "--- TypeScript"
wasm/node_modules/.bin/tsc -p tests/wasm/tsconfig.json
echo "types are right"

echo "--- a page in Chromium"
command -v "${CHROMIUM:-chromium}" >/dev/null || { echo "chromium is missing; set CHROMIUM" >&2; exit 1; }
node --test --test-reporter=spec tests/wasm/page.test.mjs
