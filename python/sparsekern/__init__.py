# SPDX-License-Identifier: Apache-2.0
"""Makes pruned neural networks run fast on CPUs and GPUs.

``prune_`` chooses weights and makes them zero, ``convert_`` packs the layers that gain from it,
``report`` says what became of each, ``save_file`` and ``load_file`` keep the result. The functions
of `sparsekern.ops` are the operators ``torch.ops.sparsekern.*`` with names and checked types.
"""

from __future__ import annotations

from sparsekern import _library
from sparsekern._core import __version__

_library.load()  # what follows needs the operators

from sparsekern import (  # noqa: E402
    _autograd_gqs,  # noqa: F401
    _autograd_nm,  # noqa: F401
    autograd,
    distill,
    interop,
    nn,
    ops,
    quant,
    training,
)
from sparsekern._hf import load_pretrained  # noqa: E402
from sparsekern.checkpoint import (  # noqa: E402
    CheckpointError,
    load_file,
    load_tensors,
    save_file,
)
from sparsekern.convert import ConvertResult, convert_  # noqa: E402
from sparsekern.csr import CSRTensor  # noqa: E402
from sparsekern.gqs import GQSTensor  # noqa: E402
from sparsekern.nm import NMTensor  # noqa: E402
from sparsekern.patterns import GQS, NM, Block, Unstructured  # noqa: E402
from sparsekern.prune import prune_  # noqa: E402

# A function and its module have one name. A module is bound to its name in the package when it is
# first imported, so this import must not be put off: the function, bound last, stays.
from sparsekern.report import report  # noqa: E402

__all__ = [
    "GQS",
    "NM",
    "Block",
    "CSRTensor",
    "CheckpointError",
    "ConvertResult",
    "GQSTensor",
    "NMTensor",
    "Unstructured",
    "__version__",
    "autograd",
    "convert_",
    "distill",
    "interop",
    "load_file",
    "load_pretrained",
    "load_tensors",
    "nn",
    "ops",
    "prune_",
    "quant",
    "report",
    "save_file",
    "training",
]
