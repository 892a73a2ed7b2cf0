# SPDX-License-Identifier: Apache-2.0
"""Prune, convert, report, save and load a small model: the whole way in one page."""

import copy
import tempfile
from pathlib import Path

import sparsekern as sk
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).eval()
x = torch.randn(128, 512)  # what the model will be used on: 128 rows

# 1. Set 90 % of each weight matrix to zero. Only values change: it is still a dense model.
pruned = sk.prune_(model, sk.Unstructured(0.9))
print(pruned, end="\n\n")
assert abs(pruned.sparsity - 0.9) < 1e-4

# 2. Pack the layers that are measured to be faster on x. Only the representation changes.
dense = copy.deepcopy(model)
result = sk.convert_(model, x, seconds=1)
print(result, end="\n\n")
with torch.inference_mode():
    torch.testing.assert_close(model(x), dense(x))

# 3. What each layer is now: kernel, bytes, time, dense time, share of the machine's limit.
print(sk.report(model, x, seconds=1), end="\n\n")

# 4. Save it, and load it into a new model of the same architecture.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    sk.save_file(model, path)
    fresh = nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)).eval()
    sk.load_file(fresh, path)
    before = sum(p.nbytes for p in dense.parameters())
    print(f"the file holds {path.stat().st_size:,} bytes; the dense weights take {before:,}")
with torch.inference_mode():
    assert torch.equal(fresh(x), model(x))
print("the loaded model gives equal outputs")
