#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the tiers of the module into wasm/dist/. Needs cmake, ninja and `pip install ziglang`; the
# Python that has it is $SPARSEKERN_ZIG_PYTHON, else the repository's .venv, else python3.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [[ -z ${SPARSEKERN_ZIG_PYTHON:-} && -x $root/.venv/bin/python ]]; then
  export SPARSEKERN_ZIG_PYTHON=$root/.venv/bin/python
fi
export PATH="$root/.venv/bin:$PATH"
mkdir -p "$root/wasm/dist" "$root/build"
for simd in ON RELAXED OFF; do
  folder=$root/build/wasm-module-$simd
  cmake -S "$root" -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DSPARSEKERN_WASM_SIMD=$simd \
    -DCMAKE_TOOLCHAIN_FILE="$root/cmake/toolchain-wasm32.cmake" >"$folder.log" 2>&1 ||
    { cat "$folder.log"; exit 1; }
  cmake --build "$folder" --target sparsekern_wasm -j "${JOBS:-2}" >>"$folder.log" 2>&1 ||
    { cat "$folder.log"; exit 1; }
  find "$folder" -name 'sparsekern-*.wasm' -exec cp {} "$root/wasm/dist/" \;
done
ls -l "$root/wasm/dist"
