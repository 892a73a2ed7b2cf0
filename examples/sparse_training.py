# SPDX-License-Identifier: Apache-2.0
"""Train a model sparse, along a gradual schedule, and convert it: handwritten digits.

Needs scikit-learn, whose 1,797 digits of 8 x 8 pixels come with the package.
"""

import sparsekern as sk
import torch
from sklearn.datasets import load_digits
from sparsekern.prune import GradualPruner, GradualSchedule, MaskKeeper, from_pruned
from torch import Tensor, nn

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
train, test = order[:1400], order[1400:]


def accuracy(model: nn.Module) -> float:
    """Share of the held-out digits that are recognized."""
    with torch.inference_mode():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


def batches(epochs: int) -> list[Tensor]:
    """Indices of the training digits, shuffled anew in each epoch."""
    return [part for _ in range(epochs) for part in train[torch.randperm(1400)].split(100)]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    """One step of ordinary training; nothing in it knows of sparsity."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
    optimizer.step()


model = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

# Dense for 28 steps, then in 35 small updates to 90 %; the small output layer is left alone.
patterns = {"4": None, "*": sk.Unstructured(0.9)}
schedule = GradualSchedule(initial=0.0, final=0.9, begin_step=28, end_step=168, every=4)
pruner = GradualPruner(model, patterns, schedule, optimizer)
for batch in batches(epochs=14):
    step(model, optimizer, batch)
    result = pruner.step()
    if result is not None and pruner.count % 40 == 28:
        print(
            f"step {pruner.count:3d}: {result.sparsity:5.1%} zeros, accuracy {accuracy(model):.1%}"
        )
pruner.detach()

# Another optimizer, another phase: MaskKeeper holds the zeros that are there, against momentum and
# weight decay.
finetune = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
with MaskKeeper(model).attach(finetune):
    for batch in batches(epochs=5):
        step(model, finetune, batch)
print(from_pruned(model), end="\n\n")
assert all(from_pruned(model)[name].achieved >= 0.899 for name in ("0", "2"))

before = accuracy(model)
dense_outputs = model.eval()(images[test]).detach()
converted = sk.convert_(model, policy="always", min_sparsity=0.5)
print(converted, end="\n\n")
assert converted.packed == ("0", "2")
with torch.inference_mode():
    torch.testing.assert_close(model(images[test]), dense_outputs, rtol=1e-4, atol=1e-4)
assert accuracy(model) == before > 0.9
print(f"accuracy {before:.1%} with 90 % of the two large layers gone")

# Packed layers train on: their Parameters are the kept values, so no mask is needed any more.
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
for batch in batches(epochs=1):
    step(model, optimizer, batch)
assert accuracy(model) > 0.9
