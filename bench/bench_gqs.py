# SPDX-License-Identifier: Apache-2.0
"""Group-quantized sparse layers with cold weights, and their split over threads."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from bench_decode import BF16, candidate, torch_dense, torch_int8
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    with_threads,
)
from limits import bandwidth
from sparsekern import GQSTensor, NMTensor, _core, ops
from torch import Tensor
from weights import Chain, Layer, Network, cold_packed, copies
from workers import candidates as peer_candidates
from workers import started

INT8_X = 2 * BF16  # x rounded to a 127th of the largest of its group, and the result to bfloat16


def _ours(name: str, w: GQSTensor, x: Tensor, sparsity: float, int8_x: bool = False) -> Candidate:
    pool = cold_packed(w)
    return candidate(
        name,
        lambda: ops.gqs_linear(x, next(pool), int8_activations=int8_x),
        x,
        w.to_dense(),
        w.nbytes,
        sparsity=sparsity,
        tolerance=INT8_X if int8_x else BF16,
        details={
            "kernel": _core.gqs_kernel(w.structure.numpy(), x.shape[0], int8_x),
            "bits": w.bits_per_weight,
        },
    )


def _half_kept(rows: int, groups: int, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, groups, generator=generator).argsort(1) < groups // 2


def _own_24(layer: Layer, x: Tensor) -> Candidate:
    w = NMTensor.from_dense(layer.weight.bfloat16(), 2, 4, strict=False)
    pool = cold_packed(w)
    return candidate(
        f"{OURS} 2:4 bf16 weights",
        lambda: ops.nm_linear(x, next(pool)),
        x,
        w.to_dense(),
        w.nbytes,
        sparsity=0.5,
        tolerance=BF16,
    )


def _torch_int4(layer: Layer, x: Tensor, group: int) -> Candidate:
    """`torch.ops.aten._weight_int4pack_mm_for_cpu`: (q - 8) * scale + zero, both bf16."""
    rows, cols = layer.weight.shape
    blocks = layer.weight.reshape(rows, -1, group)
    scale = (blocks.abs().amax(2) / 7).bfloat16()
    q = (blocks / scale.float()[:, :, None]).round().clamp(-8, 7) + 8
    aten: Any = torch.ops.aten
    packed = aten._convert_weight_to_int4pack_for_cpu(q.reshape(rows, cols).int(), 2)
    scales_and_zeros = torch.stack([scale, torch.zeros_like(scale)], 2).transpose(0, 1).contiguous()
    nbytes = packed.nbytes + scales_and_zeros.nbytes
    pool = itertools.cycle(
        [(packed.clone(), scales_and_zeros.clone()) for _ in range(copies(nbytes))]
    )

    def run() -> Tensor:
        weight, sz = next(pool)
        result: Tensor = aten._weight_int4pack_mm_for_cpu(x, weight, group, sz)
        return result

    dense = ((q - 8) * scale.float()[:, :, None]).reshape(rows, cols)
    name = f"torch _weight_int4pack_mm, group {group}"
    return candidate(name, run, x, dense, nbytes, tolerance=BF16)


def _peers_network(layer: Layer, x: Tensor) -> Network:
    """The weights as they are after rounding to groups of 32 with a largest magnitude of -8 steps.

    That is Q4_0 of ggml: such a peer quantizes them again without a further error, so that what
    is compared with the reference is the product.
    """
    blocks = layer.weight.reshape(len(layer.weight), -1, 32)
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = (largest / -8).half().float()
    rounded = ((blocks / scale).round().clamp(-8, 7) * scale).reshape(layer.weight.shape)
    return Network([Chain(x.float(), [Layer(rounded, layer.bias)])], 0.0)


def _by_rows(w: Tensor, mask: Tensor, x: Tensor) -> Candidate:
    """What two threads with half of the rows each take: the slower half, each timed alone.

    Alone a half has the memory to itself, so that this flatters the split by rows.
    """
    middle = len(w) // 2
    halves = [
        GQSTensor.from_dense(part, mask=kept)
        for part, kept in ((w[:middle], mask[:middle]), (w[middle:], mask[middle:]))
    ]
    pools = [cold_packed(half) for half in halves]
    whole = torch.cat([half.to_dense() for half in halves])

    def run() -> Tensor:
        return torch.cat([ops.gqs_linear(x, next(pool)) for pool in pools], 1)

    def seconds(calls: int) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        took = []
        with torch.inference_mode():
            for pool in pools:
                start = time.perf_counter()
                for _ in range(calls):
                    ops.gqs_linear(x, next(pool))
                took.append(time.perf_counter() - start)
        torch.set_num_threads(threads)
        return max(took) if threads > 1 else sum(took)

    nbytes = sum(half.nbytes for half in halves)
    made = candidate("split by rows", run, x, whole, nbytes, sparsity=0.5, tolerance=BF16)
    made.seconds = seconds
    return made


def _decode(section: dict[str, Any], recorder: Recorder, options: Options) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, cols = section["rows"], section["cols"]
    weight = torch.randn(rows, cols, generator=generator) * cols**-0.5
    layer = Layer(weight, torch.zeros(rows))
    mask = _half_kept(rows, cols // 16, generator)
    half = GQSTensor.from_dense(weight, 4, 16, mask=mask)
    narrow = GQSTensor.from_dense(weight, 4, 16, mask=mask, scale_dtype=torch.uint8)
    four, two = GQSTensor.from_dense(weight, 4, 128), GQSTensor.from_dense(weight, 2, 64)
    for x_rows in section["x_rows"]:
        x = torch.randn(x_rows, cols, generator=generator).bfloat16()
        cases = [
            _ours(OURS, half, x, 0.5),
            _ours(f"{OURS} 8-bit scales", narrow, x, 0.5),
            _ours(f"{OURS} W4 G128", four, x, 0.0),
            _ours(f"{OURS} W2 G64", two, x, 0.0),
            _own_24(layer, x),
            *(_torch_int4(layer, x, group) for group in section["int4_groups"]),
            torch_dense(layer, x, torch.bfloat16),
            torch_int8(layer, x, torch.bfloat16),
        ]
        if x_rows > 2:  # one and two rows are multiplied in fp32, rounded or not
            cases.insert(1, _ours(f"{OURS} int8 x", half, x, 0.5, int8_x=True))
        network = _peers_network(layer, x)
        for threads in thread_counts():
            with_threads(threads)
            case = f"{x_rows} row{'s' * (x_rows > 1)}, {cols}-{rows}, cold"
            with started(options.peers, threads) as workers:
                peers = peer_candidates(workers, [network])
                for peer in peers:
                    peer.tolerance = INT8_X
                everyone = cases + peers + bandwidth(threads)
                recorder.add(measure(case, threads, everyone, options.effort))


def _skewed(section: dict[str, Any], recorder: Recorder, options: Options) -> None:
    """The density of the rows falls from 0.9 to 0.09."""
    generator = torch.Generator().manual_seed(2)
    rows, cols = section["rows"], section["cols"]
    weight = torch.randn(rows, cols, generator=generator) * cols**-0.5
    density = 0.9 * 10.0 ** -torch.linspace(0, 1, rows)
    mask = torch.rand(rows, cols // 16, generator=generator) < density[:, None]
    x = torch.randn(1, cols, generator=generator).bfloat16()
    packed = GQSTensor.from_dense(weight, mask=mask)
    cases = [_ours(OURS, packed, x, 0.5), _by_rows(weight, mask, x)]
    for threads in thread_counts():
        with_threads(threads)
        case = f"1 row, rows of unequal density, {cols}-{rows}, cold"
        recorder.add(measure(case, threads, cases + bandwidth(threads), options.effort))


def main(options: Options) -> None:
    recorder = Recorder("gqs", options.results)
    for section in SHAPES["gqs"]["decode"]:
        _decode(section, recorder, options)
    _skewed(SHAPES["gqs"]["skewed"], recorder, options)
    recorder.save()


if __name__ == "__main__":
    main(options())
