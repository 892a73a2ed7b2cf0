# SPDX-License-Identifier: Apache-2.0
"""A model that something else pruned converts as it is: here torch.nn.utils.prune."""

import sparsekern as sk
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 64, 3, stride=2, padding=1),  # 3x3: no packed form, stays dense
    nn.ReLU(),
    nn.Conv2d(64, 128, 1),
    nn.ReLU(),
    nn.Conv2d(128, 256, 1, stride=2),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(256, 100),
).eval()

# torch keeps weight_orig and weight_mask beside each other and multiplies them in every call: the
# zeros cost time and memory instead of saving them.
for index in (2, 4, 8):
    torch_prune.l1_unstructured(model[index], "weight", amount=0.85)
assert "2.weight_mask" in model.state_dict()
x = torch.randn(2, 3, 32, 32)
with torch.inference_mode():
    expected = model(x)

# Policy "smallest" packs what takes fewer bytes and needs no example. fuse=True folds a ReLU right
# after a packed layer into it.
result = sk.convert_(model, policy="smallest", fuse=True)
print(result, end="\n\n")
print(model)

assert result.packed == ("2", "4", "8")
assert result.fused == ("2", "4")
assert not any(name.endswith("_mask") for name in model.state_dict())
with torch.inference_mode():
    torch.testing.assert_close(model(x), expected)
assert result.bytes_after < result.bytes_before / 2
print("\nsame outputs; the layers listed take less than half of the bytes")
