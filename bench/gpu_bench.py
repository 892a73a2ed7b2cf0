# SPDX-License-Identifier: Apache-2.0
"""Times the CUDA kernels of packed layers: sparsekern, torch dense, semi-structured, int4.

Writes one JSON whatever happens, and ends with 1 when a case failed or a result was wrong.
`gpu_check.sh` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import sparsekern as sk
import torch
from torch.nn import functional

CUBES = (4096, 6144, 8192)
DECODE_SHAPE = (8192, 28672)
DECODE_ROWS = (1, 4, 16)
ROUNDS = 15
DTYPE = torch.bfloat16
WITHOUT_WGMMA = "sparsekern mma.sp"  # on a Hopper: the kernel that other devices take

Call = Callable[[], torch.Tensor]


class NM:
    """N of every M weights of a row are kept."""

    operator = "nm_linear"

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        self.label = f"{n}:{m}"
        self.record: dict[str, Any] = {"n": n, "m": m}

    def pruned(self, w: torch.Tensor) -> torch.Tensor:
        return w * sk.ops.nm_mask(w, self.n, self.m)

    def packed(self, w: torch.Tensor) -> Any:
        return sk.NMTensor.from_dense(w, self.n, self.m, strict=False)


class Bitmap:
    """Any weights are kept, so many percent are not."""

    operator = "bitmap_linear"

    def __init__(self, sparsity: int) -> None:
        self.sparsity = sparsity
        self.label = f"bitmap {sparsity} %"
        self.record: dict[str, Any] = {"bitmap_sparsity": sparsity}

    def pruned(self, w: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(device=w.device).manual_seed(2)
        draw = torch.rand(w.shape, device=w.device, generator=generator)
        return torch.where(draw * 100 < self.sparsity, 0, w)

    def packed(self, w: torch.Tensor) -> Any:
        return sk.BitmapTensor.from_dense(w)


class GQS:
    """Groups of 16 weights, so many percent pruned whole, the others of so many bits."""

    operator = "gqs_linear"
    group = 16

    def __init__(self, bits: int, sparsity: int) -> None:
        self.bits, self.sparsity = bits, sparsity
        self.label = f"w{bits}, {sparsity} % of groups of {self.group}"
        self.record: dict[str, Any] = {"bits": bits, "group_sparsity": sparsity}

    def pruned(self, w: torch.Tensor) -> torch.Tensor:
        rows, cols = w.shape
        generator = torch.Generator(device=w.device).manual_seed(2)
        draw = torch.rand(rows, cols // self.group, device=w.device, generator=generator)
        w = torch.where(draw.repeat_interleave(self.group, 1) * 100 < self.sparsity, 0, w)
        return self.packed(w.cpu()).to_dense().to(w)

    def packed(self, w: torch.Tensor) -> Any:
        return sk.GQSTensor.from_dense(w, self.bits, self.group)


@dataclass(frozen=True)
class Int4:
    """A weight of `torch._weight_int4pack_mm`: (q - 8) * scale in groups of 32, none pruned."""

    packed: torch.Tensor
    scales_and_zeros: torch.Tensor
    dense: torch.Tensor
    group: ClassVar[int] = 32

    @classmethod
    def of(cls, w: torch.Tensor) -> Int4:
        rows, cols = w.shape
        blocks = w.float().reshape(rows, -1, cls.group)
        scale = (blocks.abs().amax(2) / 7).clamp(min=1e-6).to(DTYPE)
        q = (blocks / scale.float()[:, :, None]).round().clamp(-8, 7)
        unsigned = (q + 8).reshape(rows, cols).to(torch.int32)
        pairs = (unsigned[:, ::2] << 4 | unsigned[:, 1::2]).to(torch.uint8)
        scales_and_zeros = torch.stack([scale, torch.zeros_like(scale)], 2).transpose(0, 1)
        return cls(
            torch.ops.aten._convert_weight_to_int4pack(pairs, 8),
            scales_and_zeros.contiguous(),
            (q * scale.float()[:, :, None]).reshape(rows, cols).to(DTYPE),
        )

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales_and_zeros.nbytes

    def clone(self) -> Int4:
        return Int4(self.packed.clone(), self.scales_and_zeros.clone(), self.dense)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm(
            x, self.packed, self.group, self.scales_and_zeros
        )
        return result


DECODE_KINDS = (
    NM(2, 4),
    NM(2, 8),
    Bitmap(50),
    Bitmap(70),
    GQS(4, 50),
    GQS(2, 0),
)
CUBE_KINDS = (
    NM(2, 4),
    Bitmap(50),
    GQS(4, 50),
)


def environment() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    try:
        driver = subprocess.run(smi, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        driver = f"unknown: {error}"
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "sparsekern": sk.__version__,
    }


def seconds(calls: list[Call]) -> dict[str, float]:
    """Time of one call: a CUDA graph walks through `calls`, whose weights together outgrow L2."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    del kept
    q1, median, q3 = statistics.quantiles(times, n=4)
    return {"median_s": median, "q1_s": q1, "q3_s": q3}


def copies_for(weight_bytes: int) -> int:
    """How many weights to walk through so that none is left in L2 when its turn comes."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, -(-4 * l2 // weight_bytes))


def copy_bandwidth() -> dict[str, float]:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    time = seconds([lambda: target.copy_(source)])
    return {**time, "bytes_per_s": 2 * source.numel() / time["median_s"]}


def dense_peak(size: int) -> dict[str, float]:
    x, w = (torch.randn(size, size, dtype=DTYPE, device="cuda") for _ in range(2))
    time = seconds([lambda: functional.linear(x, w)] * 4)
    return {**time, "flop_per_s": 2 * size**3 / time["median_s"]}


def check(name: str, got: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> float:
    """The largest error over the root mean square of the result; raises where it is a bug's."""
    expected = x.float() @ w.float().T
    error = float((got.float() - expected).abs().max() / expected.square().mean().sqrt())
    if not error < 0.05:  # bfloat16 rounds the result to 1/256 of itself, which may be 6 sigma
        raise AssertionError(f"{name}: error must be below 0.05 of the result's rms, got {error}")
    return error


def candidates(w: torch.Tensor, kind: Any, x_rows: int) -> dict[str, Callable[[], tuple[Any, int]]]:
    """Name -> what makes a weight, and the bytes that one product reads of it."""

    def ours() -> tuple[Any, int]:
        packed = kind.packed(w.cpu())
        values, structure = packed.values.detach().cuda(), packed.structure.cuda()
        scale = packed.scale.detach().cuda() if packed.scale is not None else None
        parts = (values, structure, scale)
        return parts, sum(part.nbytes for part in parts if part is not None)

    def dense() -> tuple[Any, int]:
        return w.clone(), w.nbytes

    def semi_structured() -> tuple[Any, int]:
        from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

        SparseSemiStructuredTensor._FORCE_CUTLASS = False  # cuSPARSELt
        return to_sparse_semi_structured(w), w.nbytes * 9 // 16

    def int4() -> tuple[Any, int]:
        weight = Int4.of(w)
        return weight, weight.nbytes

    found = {"sparsekern": ours, "torch dense": dense}
    hopper = torch.cuda.get_device_capability() == (9, 0)
    if kind.label == "2:4" and hopper and x_rows > 64:
        found[WITHOUT_WGMMA] = ours
    if isinstance(kind, GQS):
        found["torch _weight_int4pack_mm"] = int4
    if kind.label == "2:4":
        found["to_sparse_semi_structured"] = semi_structured
    return found


def copy_of(weight: Any) -> Any:
    if isinstance(weight, tuple):
        return tuple(None if t is None else t.clone() for t in weight)
    return weight.clone()


def product(weight: Any, x: torch.Tensor, rows: int, kind: Any, name: str) -> Call:
    if isinstance(weight, tuple):
        operator = getattr(torch.ops.sparsekern, kind.operator)

        def call() -> torch.Tensor:
            os.environ["SPARSEKERN_CUDA_WGMMA"] = str(int(name != WITHOUT_WGMMA))
            result: torch.Tensor = operator(x, *weight, None, rows)
            return result

        return call
    if isinstance(weight, Int4):
        return lambda: weight.product(x)
    return lambda: functional.linear(x, weight)


def case(result: dict[str, Any], shape: tuple[int, int], x_rows: int, kind: Any) -> None:
    rows, cols = shape
    generator = torch.Generator(device="cuda").manual_seed(1)
    w = torch.randn(rows, cols, dtype=DTYPE, device="cuda", generator=generator)
    w = kind.pruned(w)
    x = torch.randn(x_rows, cols, dtype=DTYPE, device="cuda", generator=generator)
    entry: dict[str, Any] = {"rows": rows, "cols": cols, "x_rows": x_rows, **kind.record}
    entry["candidates"] = {}
    result["cases"].append(entry)
    bandwidth = result.get("copy", {}).get("bytes_per_s")
    peak = max((p["flop_per_s"] for p in result.get("dense_peak", {}).values()), default=None)
    for name, make in candidates(w, kind, x_rows).items():
        label = f"{kind.label} {rows}x{cols}, {x_rows} rows of x, {name}"
        try:
            weight, weight_bytes = make()
            call = product(weight, x, rows, kind, name)
            error = check(label, call(), x, getattr(weight, "dense", w))
            try:
                weights = [weight, *(copy_of(weight) for _ in range(copies_for(weight_bytes) - 1))]
            except (NotImplementedError, RuntimeError):  # a weight that cannot be cloned
                weights = [make()[0] for _ in range(copies_for(weight_bytes))]
            time = seconds([product(each, x, rows, kind, name) for each in weights])
            figures: dict[str, Any] = {**time, "error": error, "weight_bytes": weight_bytes}
            moved = weight_bytes + x.nbytes + x_rows * rows * x.element_size()
            if x_rows <= 16 and bandwidth is not None:
                figures["limit_s"] = moved / bandwidth
                figures["share_of_limit"] = figures["limit_s"] / time["median_s"]
            if x_rows > 16 and peak is not None:
                figures["limit_s"] = 2 * rows * cols * x_rows / peak  # of a dense product
                figures["of_dense_peak"] = figures["limit_s"] / time["median_s"]
            entry["candidates"][name] = figures
            print(f"{label}: {time['median_s'] * 1e6:.1f} us", flush=True)
        except Exception as error:
            text = f"{label}: {type(error).__name__}: {error}"
            # Not every build of torch has cuSPARSELt: recorded, not a failure of this library.
            entry["candidates"][name] = {"failed": text}
            if name in ("sparsekern", WITHOUT_WGMMA):
                result["failures"].append(text)
                traceback.print_exc()
            print(text, flush=True)
            torch.cuda.synchronize()  # an error of the device ends the program here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--quick", action="store_true", help="small shapes: does it all work?")
    options = parser.parse_args()
    result: dict[str, Any] = {"cases": [], "failures": []}
    cubes = (512,) if options.quick else CUBES
    decode = (1024, 2048) if options.quick else DECODE_SHAPE
    try:
        result.update(environment())
        result["copy"] = copy_bandwidth()
        result["dense_peak"] = {str(size): dense_peak(size) for size in cubes}
        for size in cubes:
            for kind in CUBE_KINDS:
                case(result, (size, size), size, kind)
                options.output.write_text(json.dumps(result, indent=1))
        for kind in DECODE_KINDS:
            for x_rows in DECODE_ROWS:
                case(result, decode, x_rows, kind)
                options.output.write_text(json.dumps(result, indent=1))
    except Exception as error:
        traceback.print_exc()
        result["failures"].append(f"{type(error).__name__}: {error}")
    finally:
        options.output.write_text(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
