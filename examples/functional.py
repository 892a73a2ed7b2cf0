# SPDX-License-Identifier: Apache-2.0
"""Without layers: packed matrices, the operators under autograd, torch.compile and torch.export."""

import sparsekern as sk
import torch
from torch import nn

torch.manual_seed(0)
w = torch.randn(256, 384)
w[torch.rand_like(w) < 0.8] = 0
x = torch.randn(10, 384)
bias = torch.randn(256)
reference = torch.relu(x @ w.T + bias)

# A packed matrix is checked once, when it is made; then it multiplies.
packed = sk.CSRTensor.from_dense(w)
print(packed)
y = sk.ops.csr_linear(x, packed, bias, activation="relu")
torch.testing.assert_close(y, reference)
assert torch.equal(packed.to_dense(), w)

# int8 weights with a scale per row; x stays float32.
quantized = sk.CSRTensor.from_dense(w, dtype=torch.int8)
error = (sk.ops.csr_linear(x, quantized, bias, "relu") - reference).abs().max()
print(quantized)
print(f"int8: {quantized.nbytes:,} bytes, float32: {packed.nbytes:,} bytes")
print(f"int8: largest error {error:.2f} in outputs up to {reference.max():.0f}")
assert quantized.nbytes < packed.nbytes / 2

# Gradients: of x, and of the kept values only.
values = packed.values.clone().requires_grad_()
trained = sk.CSRTensor(values, packed.structure)
sk.ops.csr_linear(x, trained, bias).square().sum().backward()
dense = w.clone().requires_grad_()
(x @ dense.T + bias).square().sum().backward()
gradient = sk.CSRTensor(values.grad, packed.structure).to_dense()
torch.testing.assert_close(gradient, dense.grad * packed.mask(), rtol=1e-4, atol=1e-3)
print("gradient of the kept values equals the dense one there")


class Block(nn.Module):
    """torch.ops.sparsekern.csr_linear, called with the parts of a packed matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", packed.values)
        self.register_buffer("structure", packed.structure)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu = 1  # activations by number, in the order that csr_linear's schema documents
        return torch.ops.sparsekern.csr_linear(
            x, self.values, self.structure, None, self.bias, 256, relu
        )


# One graph, no breaks. The default backend works the same; it needs a minute of C++ compilation.
compiled = torch.compile(Block(), fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), reference)

rows = torch.export.Dim("rows", max=4096)
program = torch.export.export(Block(), (x,), dynamic_shapes={"x": {0: rows}})
targets = [str(node.target) for node in program.graph.nodes]
print("exported:", *[target for target in targets if "sparsekern" in target])
assert "sparsekern.csr_linear.default" in targets
torch.testing.assert_close(program.module()(x[:3]), reference[:3])
