#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs an NVIDIA GPU, in one run: builds, tests, checks memory, measures.
#
#   bench/gpu_check.sh [result.json] [--quick]
#
# Needs, installed: a CUDA build of torch, nvcc, cmake, ninja, pybind11, scikit-build-core, pytest, hypothesis
# and what sparsekern itself needs; no network. Works in build/gpu; the result is one JSON with device,
# driver, commit, the outcome of every part and all figures. A part that fails makes the script fail, after
# the others have run and the JSON is written.
#
# PYTHON=... names the Python; SPARSEKERN_GPU_PARTS="build tests sanitizer bench" the parts.
set -uo pipefail
cd "$(dirname "$0")/.."

ROOT=$PWD
WORK=$ROOT/build/gpu
PYTHON=${PYTHON:-python3}
PARTS=${SPARSEKERN_GPU_PARTS:-build tests sanitizer bench}
OUTPUT=$WORK/result.json
QUICK=()
for argument in "$@"; do
  case $argument in
    --quick) QUICK=(--quick) ;;
    -*) echo "gpu_check.sh: the options are [result.json] and --quick; got $argument" >&2; exit 2 ;;
    *) OUTPUT=$argument ;;
  esac
done
mkdir -p "$WORK"
rm -f "$WORK/parts" "$WORK/bench.json"
export PYTHONPATH=$WORK/site PYTHONUNBUFFERED=1
COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[[ -z $(git status --porcelain --untracked-files=no 2>/dev/null) ]] || COMMIT="$COMMIT, changed"

# Without these the parts that need the library would test another one, or nothing.
part_build() {
  "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
    { echo "torch sees no CUDA GPU"; return 1; }
  rm -rf "$WORK/site"
  "$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation --target "$WORK/site" \
    -Cbuild-dir="$WORK/cmake" -Ccmake.define.SPARSEKERN_CUDA=ON "$ROOT" || return 1
  (cd "$WORK" && "$PYTHON" - "$WORK/site") <<'PYTHON'
import sys
import torch, sparsekern
assert sparsekern.__file__.startswith(sys.argv[1]), sparsekern.__file__
assert torch._C._dispatch_has_kernel_for_dispatch_key("sparsekern::nm_linear", "CUDA")
assert torch._C._dispatch_has_kernel_for_dispatch_key("sparsekern::bitmap_linear", "CUDA")
assert torch._C._dispatch_has_kernel_for_dispatch_key("sparsekern::gqs_linear", "CUDA")
PYTHON
}

# A line a family.
TESTS=(
  tests/test_cuda_nm.py
  tests/test_cuda_csr.py
  tests/test_cuda_bitmap.py
  tests/test_cuda_gqs.py
)

part_tests() { "$PYTHON" -m pytest -q -m cuda -p no:cacheprovider "${TESTS[@]}"; }

part_sanitizer() {
  local tool=compute-sanitizer
  command -v $tool >/dev/null || tool=/usr/local/cuda/bin/compute-sanitizer
  command -v $tool >/dev/null || { echo "compute-sanitizer is not installed: nothing was checked"; return 77; }
  local check failed=0 only which
  for check in memcheck racecheck initcheck synccheck; do
    # initcheck must see who writes; the others look at this library's kernels.
    only=(--kernel-name kernel_substring=sparsekern)
    which="tiny or shapes_and_strides or bias_and_activation or test_masks or any_bytes"
    # What corrupt offsets leave unwritten is read: somewhere inside its array, that is all that is promised.
    [[ $check != initcheck ]] || { only=(); which="($which) and not corrupt"; }
    echo "--- $check"
    # torch's caching allocator would hide reads beyond a tensor.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$check" --error-exitcode 9 --target-processes all \
      "${only[@]}" "$PYTHON" -m pytest -q -x -m cuda -p no:cacheprovider "${TESTS[@]}" \
      -k "$which" ||
      { echo "$check failed"; failed=1; }
  done
  return $failed
}

part_bench() { "$PYTHON" bench/gpu_bench.py "$WORK/bench.json" "${QUICK[@]}"; }

write_result() {
  "$PYTHON" - "$OUTPUT" "$WORK" "$COMMIT" <<'PYTHON'
import datetime, json, pathlib, sys
output, work, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
result = {"commit": commit, "date": datetime.datetime.now().isoformat(timespec="seconds"), "parts": {}}
for line in (work / "parts").read_text().splitlines():
    name, outcome, seconds = line.split()
    log = (work / f"{name}.log").read_text(errors="replace").splitlines()
    result["parts"][name] = {"outcome": outcome, "seconds": int(seconds), "log_end": log[-15:]}
bench = work / "bench.json"
if bench.exists():
    result.update(json.loads(bench.read_text()))
output.write_text(json.dumps(result, indent=1) + "\n")
print(f"wrote {output}")
PYTHON
}

failed=0
: >"$WORK/parts"
for part in $PARTS; do
  echo "=== $part ($(date +%T))"
  start=$SECONDS
  "part_$part" 2>&1 | tee "$WORK/$part.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) outcome=passed ;;
    77) outcome=not_run ;;
    *) outcome=failed failed=1 ;;
  esac
  echo "$part $outcome $((SECONDS - start))" >>"$WORK/parts"
  echo "--- $part: $outcome"
  # Nothing after it would test this build.
  [[ $part != build || $code == 0 ]] || break
done
write_result || failed=1
exit $failed
