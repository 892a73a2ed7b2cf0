# SPDX-License-Identifier: Apache-2.0
"""A `Network` as sparsekern, torch and onnxruntime run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from harness import OURS, Candidate, timed
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sparsekern import CSRTensor, _core, ops
from torch.nn import functional
from weights import Layer, Network, flat, kernel_name, mkl_csr, packed

# Largest error allowed, in units of the result's root mean square.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.int8: 0.3}


def _candidate(
    name: str, network: Network, run: Callable[[], list[Any]], **fields: Any
) -> Candidate:
    def call() -> list[Any]:
        with torch.inference_mode():
            return run()

    def seconds(calls: int) -> float:
        with torch.inference_mode():
            return timed(run)(calls)

    return Candidate(
        name,
        seconds,
        lambda: flat(call()),
        network.reference,
        sparsity=network.sparsity,
        flops=network.flops,
        **fields,
    )


def sparsekern(
    network: Network, isa: str | None = None, name: str = OURS, int8: bool = False
) -> Candidate:
    """The operators of this library; `isa` forces an instruction set while they run.

    int8: weights and x in int8.
    """
    dtype = torch.int8 if int8 else torch.float32
    chains = [
        (chain.x, [(packed(layer, dtype), layer.bias) for layer in chain.layers])
        for chain in network.chains
    ]
    conv = network.chains[0].x.dim() == 4
    op = ops.csr_conv2d if conv else ops.csr_linear

    def run() -> list[Any]:
        outputs = []
        for x, layers in chains:
            y = x
            for w, bias in layers:
                y = op(y, w, bias, int8_activations=int8)
            outputs.append(y)
        return outputs

    last: CSRTensor = chains[-1][1][-1][0]
    _core.set_isa(isa)
    kernel = kernel_name(last, network.chains[-1].x.shape[0], conv, int8)
    _core.set_isa(None)
    nbytes = sum(w.nbytes for _, layers in chains for w, _ in layers)
    details = {"kernel": kernel, "weight_bytes": nbytes}
    candidate = _candidate(name, network, run, details=details, tolerance=TOLERANCE[dtype])
    if isa is None:
        return candidate
    seconds, output = candidate.seconds, candidate.output

    def forced(function: Callable[..., Any]) -> Callable[..., Any]:
        def with_isa(*arguments: Any) -> Any:
            _core.set_isa(isa)
            try:
                return function(*arguments)
            finally:
                _core.set_isa(None)

        return with_isa

    candidate.seconds, candidate.output = forced(seconds), forced(output)
    return candidate


def torch_linear(network: Network, dtype: torch.dtype = torch.float32) -> Candidate:
    chains = [
        (c.x.to(dtype), [(la.weight.to(dtype), la.bias.to(dtype)) for la in c.layers])
        for c in network.chains
    ]

    def run() -> list[Any]:
        outputs = []
        for x, layers in chains:
            y = x
            for w, bias in layers:
                y = functional.linear(y, w, bias)
            outputs.append(y)
        return outputs

    name = f"torch dense {_short(dtype)}"
    return _candidate(name, network, run, tolerance=TOLERANCE[dtype])


def torch_int8(network: Network) -> Candidate:
    """torch's dynamic quantization: int8 weights per output, x in uint8 per tensor."""

    def prepared(layer: Layer) -> Any:
        w = layer.weight
        scale = w.abs().amax(1).double() / 127
        zeros = torch.zeros(len(w), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            quantized = torch.quantize_per_channel(w, scale, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, layer.bias)

    chains = [(c.x, [prepared(layer) for layer in c.layers]) for c in network.chains]

    def run() -> list[Any]:
        outputs = []
        for x, layers in chains:
            y = x
            for weight in layers:
                y = torch.ops.quantized.linear_dynamic(y, weight)
            outputs.append(y)
        return outputs

    return _candidate("torch dense int8", network, run, tolerance=TOLERANCE[torch.int8])


def torch_conv2d(network: Network, nhwc: bool, dtype: torch.dtype = torch.float32) -> Candidate:
    memory = torch.channels_last if nhwc else torch.contiguous_format

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).contiguous(memory_format=memory)

    chains = [
        (
            placed(c.x),
            [(placed(la.weight[:, :, None, None]), la.bias.to(dtype)) for la in c.layers],
        )
        for c in network.chains
    ]

    def run() -> list[Any]:
        outputs = []
        for x, layers in chains:
            y = x
            for w, bias in layers:
                y = functional.conv2d(y, w, bias)
            outputs.append(y)
        return outputs

    name = f"torch dense {_short(dtype)} {'NHWC' if nhwc else 'NCHW'}"
    return _candidate(name, network, run, tolerance=TOLERANCE[dtype])


def torch_csr(network: Network) -> Candidate:
    """MKL's product of a sparse and a dense matrix, on channel-major activations as it wants."""
    chains = []
    for c in network.chains:
        x = c.x.flatten(2)[0] if c.x.dim() == 4 else c.x.T
        layers = [(mkl_csr(layer.weight), layer.bias[:, None]) for layer in c.layers]
        chains.append((x.contiguous(), layers, c.x.dim() == 4))

    def products() -> list[Any]:
        outputs = []
        for x, layers, conv in chains:
            y = x
            for w, bias in layers:
                y = (w @ y).add_(bias)
            outputs.append(y if conv else y.T)
        return outputs

    return _candidate("torch CSR (MKL)", network, products)


def onnx_model(network: Network) -> bytes:
    """The network as an ONNX graph: Conv or Gemm nodes with constant weights."""
    nodes, weights, inputs, outputs = [], [], [], []
    for i, chain in enumerate(network.chains):
        conv = chain.x.dim() == 4
        name = f"x{i}"
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(chain.x.shape)))
        for j, layer in enumerate(chain.layers):
            w = layer.weight[:, :, None, None] if conv else layer.weight
            last = j + 1 == len(chain.layers)
            result = f"y{i}" if last else f"t{i}_{j}"
            weights.append(numpy_helper.from_array(w.numpy(), f"w{i}_{j}"))
            weights.append(numpy_helper.from_array(layer.bias.numpy(), f"b{i}_{j}"))
            operands = [name, f"w{i}_{j}", f"b{i}_{j}"]
            if conv:
                nodes.append(helper.make_node("Conv", operands, [result], kernel_shape=[1, 1]))
            else:
                nodes.append(helper.make_node("Gemm", operands, [result], transB=1))
            name = result
        shape = [*chain.x.shape]
        shape[1] = chain.layers[-1].bias.numel()
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "bench", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def onnxruntime(network: Network, threads: int) -> Candidate:
    """onnxruntime with inputs and outputs bound to memory before: no copies in the timed calls."""
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.log_severity_level = 3
    session = ort.InferenceSession(
        onnx_model(network), session_options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    results: list[NDArray[np.float32]] = []
    for i, chain in enumerate(network.chains):
        binding.bind_cpu_input(f"x{i}", chain.x.numpy())
        shape = session.get_outputs()[i].shape
        results.append(np.empty(shape, np.float32))
        binding.bind_output(f"y{i}", "cpu", 0, np.float32, shape, results[i].ctypes.data)

    def output() -> NDArray[Any]:
        session.run_with_iobinding(binding)
        return flat(results)

    return Candidate(
        "onnxruntime dense fp32",
        timed(lambda: session.run_with_iobinding(binding)),
        output,
        network.reference,
        sparsity=network.sparsity,
        flops=network.flops,
    )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
