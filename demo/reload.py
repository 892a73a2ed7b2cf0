# SPDX-License-Identifier: Apache-2.0
"""Run in a new process: load a checkpoint into the published model and embed the given tokens.

python demo/reload.py CHECKPOINT INPUTS.pt OUTPUTS.pt [THREADS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import sparsekern as sk
import torch
from batches import Batch
from model import load_dense, run


def main(checkpoint: str, inputs: str, outputs: str, threads: str = "") -> None:
    """Write the embeddings, [texts, 384], to `outputs`."""
    if threads:
        torch.set_num_threads(int(threads))
    tokens = torch.load(inputs, weights_only=True)
    model = load_dense()
    sk.load_file(model, Path(checkpoint))
    with torch.inference_mode():
        torch.save(run(model, Batch(tokens["ids"], tokens["mask"])).clone(), outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
