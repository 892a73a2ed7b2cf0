# SPDX-License-Identifier: Apache-2.0
"""Instruction sets: the kernels of each forced in turn; and dense fp32 held to AVX2.

oneDNN, MKL and torch read their limits once, from the environment, so the second part runs in a
process of its own. onnxruntime has no such switch and takes no part in it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from candidates import sparsekern, torch_conv2d, torch_linear
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
from sparsekern import _core
from weights import Network, conv_network, linear_network

_DENSE_AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "SPARSEKERN_ISA": "avx2",
}
_KERNEL_SETS = ("avx512", "avx2", "neon", "scalar")  # those that have csr kernels


def _networks(sparsity: float) -> dict[str, Network]:
    section = SHAPES["isa"]
    found = {}
    for shape in section["conv2d"]:
        size, channels = shape["size"], shape["channels"]
        found[f"conv2d {size}x{size}x{channels}"] = conv_network(size, channels, 1, sparsity)
    for shape in section["linear"]:
        features = shape["features"]
        name = f"linear {shape['x_rows']} rows, {'-'.join(map(str, features))}"
        found[name] = linear_network(shape["x_rows"], features, sparsity)
    return found


def _dense(network: Network) -> list[Candidate]:
    if network.chains[0].x.dim() == 4:
        return [torch_conv2d(network, nhwc=False), torch_conv2d(network, nhwc=True)]
    return [torch_linear(network)]


def main(options: Options) -> None:
    """The second part where the environment holds dense to AVX2, else the first."""
    limited = all(os.environ.get(name) == value for name, value in _DENSE_AVX2.items())
    sparsities = SHAPES["isa"]["sparsities"]
    pruned = {sparsity: _networks(sparsity) for sparsity in sparsities}
    dense = _networks(0.0)
    isas = [isa for isa in _KERNEL_SETS if isa in _core.detected_isa()]
    recorder = Recorder("isa_avx2" if limited else "isa", options.results)
    for threads in thread_counts():
        with_threads(threads)
        for case, network in dense.items():
            if limited:
                cases = [sparsekern(pruned[s][case]) for s in sparsities] + _dense(network)
            else:
                cases = [
                    sparsekern(pruned[s][case], isa, f"{OURS} {isa}")
                    for s in sparsities
                    for isa in isas
                ]
            record = measure(case, threads, cases, options.effort)
            recorder.add({**record, "torch_capability": torch.backends.cpu.get_cpu_capability()})
    recorder.save()
    if not limited and "avx2" in isas:
        environment = {**os.environ, **_DENSE_AVX2}
        subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=True)


if __name__ == "__main__":
    main(options())
