# SPDX-License-Identifier: Apache-2.0
"""Linear layers on many rows of x, fp32."""

from __future__ import annotations

import torch
from candidates import onnxruntime, sparsekern, torch_csr, torch_int8, torch_linear
from harness import OURS, SHAPES, Options, Recorder, measure, options, thread_counts, with_threads
from limits import multiply_adds
from weights import linear_network
from workers import candidates as peer_candidates
from workers import started


def main(options: Options) -> None:
    section = SHAPES["linear"]
    x_rows = section["x_rows"]
    recorder = Recorder("linear", options.results)
    for threads in thread_counts():
        with_threads(threads)
        with started(options.peers, threads) as workers:
            for shape in section["cases"]:
                features = shape["features"]
                dense, *pruned = (
                    linear_network(x_rows, features, sparsity)
                    for sparsity in (0.0, *section["sparsities"])
                )
                cases = [
                    *map(sparsekern, pruned),
                    *(sparsekern(n, name=f"{OURS} int8 x int8", int8=True) for n in pruned),
                    torch_int8(dense),
                    onnxruntime(dense, threads),
                    torch_linear(dense),
                    torch_linear(dense, torch.bfloat16),
                    *map(torch_csr, pruned),
                    *peer_candidates(workers, pruned),
                    multiply_adds(threads),
                ]
                name = "-".join(map(str, features if len(set(features)) > 1 else features[:2]))
                recorder.add(measure(f"{x_rows} rows, {name}", threads, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
