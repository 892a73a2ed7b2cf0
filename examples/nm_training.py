# SPDX-License-Identifier: Apache-2.0
"""Train with 2:8 weights from the first step, and pack them: two recipes beside dense.

Needs scikit-learn, whose 1,797 digits of 8 x 8 pixels come with the package.
"""

import sparsekern as sk
import torch
from sklearn.datasets import load_digits
from sparsekern import training as tr
from torch import Tensor, nn
from torch.nn import functional

images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]
PATTERN = sk.NM(2, 8)


def train_model(recipe: tr.Recipe | None, steps: int = 400) -> nn.Sequential:
    """A model of two hidden layers; the last layer stays dense."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if recipe is not None:
        # Masks follow the weights: they are made anew after every optimizer.step().
        tr.prepare_(model, {"4": None, "*": PATTERN}, recipe).attach(optimizer)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (128,))]
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    # Plain layers again, in which six of eight consecutive weights are zero.
    return model if recipe is None else tr.finish_(model)


@torch.inference_mode()
def errors(model: nn.Module) -> int:
    """Digits that were not trained on and are taken for others."""
    answers: Tensor = model(images[test]).argmax(1)
    return int((answers != labels[test]).sum())


recipes = {
    "dense": None,
    "SR-STE": tr.Recipe(gradient=tr.SRSTE(2e-4)),
    "S-STE": tr.Recipe(forward=tr.SoftThreshold()),
}
models = {name: train_model(recipe) for name, recipe in recipes.items()}
for name, model in models.items():
    print(f"{name:7} {errors(model):3} of {len(test)} test digits wrong")

sparse = models["S-STE"].eval()
kept = sk.ops.nm_mask(sparse[2].weight, 2, 8)
assert not sparse[2].weight[~kept].any()
assert errors(sparse) <= errors(models["dense"]) + len(test) // 20

x = images[test]
with torch.inference_mode():
    expected = sparse(x)
result = sk.convert_(sparse, policy="smallest")
print(result)
assert isinstance(sparse[2], sk.nn.NMLinear)
with torch.inference_mode():
    torch.testing.assert_close(sparse(x), expected)
