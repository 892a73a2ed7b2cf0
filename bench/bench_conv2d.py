# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions in fp32, batch 1: stacks of equal layers, and all of MobileNet v1."""

from __future__ import annotations

import torch
from candidates import onnxruntime, sparsekern, torch_conv2d, torch_csr
from harness import (
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    thread_counts,
    with_threads,
)
from limits import multiply_adds
from weights import Network, conv_list, conv_network
from workers import candidates as peer_candidates
from workers import started


def _side_by_side(dense: Network, pruned: list[Network], threads: int) -> list[Candidate]:
    return [
        *map(sparsekern, pruned),
        onnxruntime(dense, threads),
        torch_conv2d(dense, nhwc=False),
        torch_conv2d(dense, nhwc=True),
        torch_conv2d(dense, nhwc=True, dtype=torch.bfloat16),
        *map(torch_csr, pruned),
        multiply_adds(threads),
    ]


def _stacks(options: Options) -> None:
    section = SHAPES["conv2d"]
    recorder = Recorder("conv2d", options.results)
    for threads in thread_counts():
        with_threads(threads)
        with started(options.peers, threads) as workers:
            for shape in section["cases"]:
                size, channels = shape["size"], shape["channels"]
                dense, *pruned = (
                    conv_network(size, channels, section["layers"], sparsity)
                    for sparsity in (0.0, *section["sparsities"])
                )
                cases = _side_by_side(dense, pruned, threads)
                cases += peer_candidates(workers, pruned)
                recorder.add(measure(f"{size}x{size}x{channels}", threads, cases, options.effort))
    recorder.save()


def _mobilenet(options: Options) -> None:
    section = SHAPES["mobilenet"]
    recorder = Recorder("mobilenet", options.results)
    dense, *pruned = (
        conv_list(section["layers"], sparsity) for sparsity in (0.0, *section["sparsities"])
    )
    for threads in thread_counts():
        with_threads(threads)
        cases = _side_by_side(dense, pruned, threads)
        recorder.add(measure(section["name"], threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    given = options()
    _stacks(given)
    _mobilenet(given)
