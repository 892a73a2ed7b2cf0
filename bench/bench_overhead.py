# SPDX-License-Identifier: Apache-2.0
"""What a call costs: the smallest layers, where arithmetic takes no time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import (
    OURS,
    SHAPES,
    Candidate,
    Options,
    Recorder,
    measure,
    options,
    timed,
    with_threads,
)
from sparsekern import CSRTensor, ops
from torch import Tensor
from torch.nn import functional
from weights import random_layer


def main(options: Options) -> None:
    section = SHAPES["overhead"]
    with_threads(1)
    recorder = Recorder("overhead", options.results)
    generator = torch.Generator().manual_seed(1)
    raw = torch.ops.sparsekern.csr_linear.default
    for shape in section["cases"]:
        rows, cols = shape["rows"], shape["cols"]
        layer = random_layer(rows, cols, 0.9, generator)
        weight, bias = layer.weight, layer.bias
        x = torch.randn(section["x_rows"], cols, generator=generator)
        w = CSRTensor.from_dense(weight)
        values, structure = w.values, w.structure
        calls: dict[str, Callable[[], Tensor]] = {
            f"{OURS}.ops.csr_linear": lambda x=x, w=w, b=bias: ops.csr_linear(x, w, b),
            f"{OURS} operator": lambda x=x, v=values, s=structure, b=bias, n=rows: raw(
                x, v, s, None, b, n
            ),
            "torch F.linear": lambda x=x, w=weight, b=bias: functional.linear(x, w, b),
        }
        reference = (x.double() @ weight.double().T + bias.double()).numpy()

        def in_inference_mode(call: Callable[[], Tensor]) -> Callable[[int], float]:
            def seconds(n: int) -> float:
                with torch.inference_mode():
                    return timed(call)(n)

            return seconds

        cases = [
            Candidate(name, in_inference_mode(call), lambda call=call: call().numpy(), reference)
            for name, call in calls.items()
        ]
        name = f"{section['x_rows']} row, {cols}-{rows}"
        recorder.add(measure(name, 1, cases, options.effort))
    recorder.save()


if __name__ == "__main__":
    main(options())
