# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face model as it is: a small BERT with random weights, so nothing is downloaded.

Needs transformers. For a model directory on disk the command line does the same:

    sparsekern prune MODEL_DIR -o pruned --sparsity 0.8
    sparsekern convert pruned -o packed
"""

import copy
import tempfile
from pathlib import Path

import sparsekern as sk
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
config = BertConfig(
    vocab_size=1000,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
)
model = BertModel(config).eval()
batch = {
    "input_ids": torch.randint(0, 1000, (8, 64)),
    "attention_mask": torch.ones(8, 64, dtype=torch.long),
}

# Wanda looks at activations, so it wants a few batches of real input; these are random. Globs name
# the layers: attention and feed-forward, not the pooler.
pruned = sk.prune_(
    model, {"encoder.*": sk.Unstructured(0.85)}, score="wanda", calibration=[batch] * 2
)
print(f"{len(pruned.layers)} layers pruned to {pruned.sparsity:.1%}\n")
dense = copy.deepcopy(model)

# A mapping is passed by keyword. No weight is rounded here: with allow_dtypes=[torch.bfloat16] a
# layer may become dense bfloat16 too, which on a processor with AMX can be the fastest of all.
result = sk.convert_(model, batch, seconds=0.5)
print(result, end="\n\n")
with torch.inference_mode():
    was, now = dense(**batch).last_hidden_state, model(**batch).last_hidden_state
torch.testing.assert_close(now, was, rtol=1e-3, atol=1e-4)

with tempfile.TemporaryDirectory() as folder:
    sk.save_file(model, Path(folder) / "bert.safetensors")
    fresh = sk.load_file(BertModel(config), Path(folder) / "bert.safetensors").eval()
with torch.inference_mode():
    assert torch.equal(fresh(**batch).last_hidden_state, now)
print("saved, loaded into a new BertModel: equal outputs")
