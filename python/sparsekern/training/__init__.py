# SPDX-License-Identifier: Apache-2.0
"""Training with N:M weights, out of small pieces.

    import sparsekern as sk
    from sparsekern import training as tr

    recipe = tr.Recipe(gradient=tr.SRSTE(2e-4), input_gradient="own")
    tr.prepare_(model, {"head": None, "*": sk.NM(2, 8)}, recipe).attach(optimizer)
    for batch in data:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    tr.finish_(model)                      # dense layers with zeros; sk.convert_ packs them

`prepare_` turns layers into `NMTrainingLinear` and `NMTrainingConv2d`, which keep a dense master
weight; the `Training` that it returns counts optimizer steps and keeps the masks (`attach`, or
`add_decay` before and `step` after each). The state dicts of model and optimizer are all that
resuming needs. A `Recipe` is made of

* the forward weight: `Hard`, `Decaying`, `SoftThreshold`;
* the gradient of the master weight: `StraightThrough`, `SRSTE`, `ChainRule`, `Masked`;
* the weight behind the gradient of x: "same", "own", "transposable";
* the pruned output gradient: `MVUE`, or none;
* when: `refresh`, `fixed_after`, `frames` (`Frames`, `stepwise_frames`, `geometric_frames`,
  `cubic_frames`).

CAST, whose forward pass is dense, is apart from these: `cast_`, `AdamS`, `finish_cast_`. STEP is an
optimizer before and under any of them: `StepAdam`.

``docs/training.md`` says which of them make the recipes of which papers.
"""

from .cast import AdamS, WeightScale, cast_, distillation_loss, finish_cast_
from .forward import Decaying, Forward, Hard, SoftThreshold
from .gradient import SRSTE, ChainRule, GradientRule, Masked, StraightThrough
from .layers import NMTrainingConv2d, NMTrainingLayer, NMTrainingLinear
from .model import Training, finish_, prepare_
from .mvue import MVUE, mvue
from .recipe import Recipe
from .schedule import Frames, cubic_frames, geometric_frames, stepwise_frames
from .step import StepAdam

__all__ = [
    "MVUE",
    "SRSTE",
    "AdamS",
    "ChainRule",
    "Decaying",
    "Forward",
    "Frames",
    "GradientRule",
    "Hard",
    "Masked",
    "NMTrainingConv2d",
    "NMTrainingLayer",
    "NMTrainingLinear",
    "Recipe",
    "SoftThreshold",
    "StepAdam",
    "StraightThrough",
    "Training",
    "WeightScale",
    "cast_",
    "cubic_frames",
    "distillation_loss",
    "finish_",
    "finish_cast_",
    "geometric_frames",
    "mvue",
    "prepare_",
    "stepwise_frames",
]
