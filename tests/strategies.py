# SPDX-License-Identifier: Apache-2.0
"""Matrices, activations and hypothesis strategies for them.

Sizes sit where kernels break: 1, powers of two and their neighbours, so every edge of a lane (16),
a row tile (64), a column block (128) and a panel (256) is met from both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import oracle
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparsekern import _core

DTYPES = ("float32", "bfloat16", "float16", "int8")
X_DTYPES = ("float32", "bfloat16", "float16")
TORCH = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
ACTIVATIONS = ("none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish")
EDGES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
# Rows of x: every tail of a decode kernel, every width of a batch kernel and its neighbours.
X_ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 129)


@dataclass(frozen=True)
class Spec:
    """A reproducible random matrix: what to draw, and the seed it is drawn from."""

    rows: int
    cols: int
    density: float = 0.2
    dtype: str = "float32"
    block_rows: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Packed:
    """A packed matrix as torch tensors, and what the oracle reads in it."""

    spec: Spec | NmSpec
    values: torch.Tensor
    structure: torch.Tensor
    scale: torch.Tensor | None
    matrix: oracle.Csr | oracle.Nm | oracle.Bitmap

    @property
    def dense(self) -> oracle.Array:
        """Float64 weights, the scale of int8 included."""
        if self.scale is None:
            return self.matrix.dense
        return self.matrix.dense * self.scale.double().numpy()[:, None]


def stored(values: torch.Tensor) -> NDArray:
    """Elements as ``_core`` takes them: bf16 and f16 as uint16."""
    if values.dtype in (torch.bfloat16, torch.float16):
        return values.view(torch.uint16).numpy()
    return values.numpy()


def from_stored(values: NDArray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).view(TORCH[dtype])


def draw(spec: Spec) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Signed weights of the spec's dtype and a mask that is uniform, but for one full and one
    empty group: load balance and padding are at their worst there."""
    rng = np.random.default_rng(spec.seed)
    groups = -(-spec.rows // spec.block_rows)
    kept = rng.random((groups, spec.cols)) < spec.density
    if 0 < spec.density < 1 and groups > 2:
        kept[rng.integers(groups)] = False
        kept[rng.integers(groups)] = True
    mask = np.repeat(kept, spec.block_rows, axis=0)[: spec.rows]
    if spec.dtype == "int8":
        whole = rng.integers(-127, 128, (spec.rows, spec.cols), dtype=np.int8)
        whole[whole == 0] = 1
        return torch.from_numpy(whole), mask
    normal = rng.standard_normal((spec.rows, spec.cols))
    normal += np.copysign(0.01, normal)  # no accidental zero in any dtype
    return torch.from_numpy(normal).to(TORCH[spec.dtype]), mask


def pack(spec: Spec) -> Packed:
    weights, mask = draw(spec)
    values, structure = _core.csr_pack(stored(weights), spec.dtype, mask, spec.block_rows)
    return _packed(spec, values, structure, oracle.read_csr)


def pack_bitmap(spec: Spec) -> Packed:
    """As `pack`; `block_rows` must be 1."""
    weights, mask = draw(spec)
    values, structure = _core.bitmap_pack(stored(weights), spec.dtype, mask)
    return _packed(spec, values, structure, oracle.read_bitmap)


def _packed(
    spec: Spec | NmSpec,
    values: NDArray,
    structure: NDArray[np.uint8],
    read: Callable[..., oracle.Csr | oracle.Nm | oracle.Bitmap],
) -> Packed:
    scale = None
    if spec.dtype == "int8":
        rng = np.random.default_rng(spec.seed + 2)
        scale = torch.from_numpy(rng.uniform(0.001, 0.02, spec.rows).astype(np.float32))
    return Packed(
        spec,
        from_stored(values, spec.dtype),
        torch.from_numpy(structure),
        scale,
        read(values, structure, spec.dtype),
    )


# --- nm -------------------------------------------------------------------------------------------

# Every M, with the least, a usual and the largest N.
NM_PATTERNS = (
    *((1, 2), (1, 4), (2, 4), (3, 4), (1, 8), (2, 8), (4, 8), (7, 8)),
    *((1, 16), (2, 16), (4, 16), (8, 16), (15, 16), (1, 32), (2, 32), (4, 32), (16, 32), (31, 32)),
)


@dataclass(frozen=True)
class NmSpec:
    """A reproducible random N:M matrix; ``short`` is the share of groups that keep fewer than N."""

    rows: int
    cols: int
    n: int = 2
    m: int = 4
    dtype: str = "float32"
    short: float = 0.0
    seed: int = 0


def draw_nm(spec: NmSpec) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Signed weights without a zero, and a mask that keeps at most N of every M."""
    weights, _ = draw(Spec(spec.rows, spec.cols, 1.0, spec.dtype, seed=spec.seed))
    rng = np.random.default_rng(spec.seed + 1)
    groups = -(-spec.cols // spec.m)
    rank = rng.random((spec.rows, groups, spec.m)).argsort(axis=2)
    keep = np.full((spec.rows, groups, 1), spec.n)
    fewer = rng.random(keep.shape) < spec.short
    keep[fewer] = rng.integers(0, spec.n, keep.shape)[fewer]
    mask = (rank < keep).reshape(spec.rows, -1)[:, : spec.cols]
    return weights, np.ascontiguousarray(mask)


def pack_nm(spec: NmSpec) -> Packed:
    weights, mask = draw_nm(spec)
    values, structure = _core.nm_pack(stored(weights), spec.dtype, spec.n, spec.m, mask)
    return _packed(spec, values, structure, oracle.read_nm)


def activations(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(TORCH[dtype])


def _code(activation: str | int) -> int:
    return activation if isinstance(activation, int) else ACTIVATIONS.index(activation)


def run_linear(
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | int = "none",
    **changes: object,
) -> torch.Tensor:
    """``torch.ops.sparsekern.csr_linear``; ``changes`` replace single arguments."""
    arguments: dict[str, object] = {
        "x": x,
        "values": packed.values,
        "structure": packed.structure,
        "scale": packed.scale,
        "bias": bias,
        "rows": packed.spec.rows,
        "activation": _code(activation),
    }
    return torch.ops.sparsekern.csr_linear(**(arguments | changes))


def run_conv2d(
    packed: Packed,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int = 1,
    activation: str | int = "none",
    **changes: object,
) -> torch.Tensor:
    """``torch.ops.sparsekern.csr_conv2d``; ``changes`` replace single arguments."""
    arguments: dict[str, object] = {
        "x": x,
        "values": packed.values,
        "structure": packed.structure,
        "scale": packed.scale,
        "bias": bias,
        "rows": packed.spec.rows,
        "stride": stride,
        "activation": _code(activation),
    }
    return torch.ops.sparsekern.csr_conv2d(**(arguments | changes))


def sizes(largest: int = 300) -> st.SearchStrategy[int]:
    edges = st.sampled_from([n for n in EDGES if n <= largest])
    return st.one_of(edges, st.integers(1, largest))


def densities() -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]), st.floats(0.0, 1.0))


@st.composite
def specs(draw_from: st.DrawFn, largest: int = 300, dtypes: tuple[str, ...] = DTYPES) -> Spec:
    return Spec(
        rows=draw_from(sizes(largest)),
        cols=draw_from(sizes(largest)),
        density=draw_from(densities()),
        dtype=draw_from(st.sampled_from(dtypes)),
        block_rows=draw_from(st.sampled_from([1, 2, 4])),
        seed=draw_from(st.integers(0, 2**16)),
    )


@st.composite
def nm_specs(draw_from: st.DrawFn, largest: int = 150, dtypes: tuple[str, ...] = DTYPES) -> NmSpec:
    n, m = draw_from(st.sampled_from(NM_PATTERNS))
    return NmSpec(
        rows=draw_from(sizes(largest)),
        cols=draw_from(sizes(largest)),
        n=n,
        m=m,
        dtype=draw_from(st.sampled_from(dtypes)),
        short=draw_from(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        seed=draw_from(st.integers(0, 2**16)),
    )


@st.composite
def strided(draw_from: st.DrawFn, rows: int, cols: int, dtype: str, seed: int) -> torch.Tensor:
    """x of [rows, cols] in one of the layouts that callers have: whole, a slice with an odd row
    stride and an odd start, every second column, transposed, one row expanded."""
    layout = draw_from(st.sampled_from(["whole", "odd", "second", "transposed", "expanded"]))
    if layout == "odd":
        return activations((rows + 1, cols + 5), dtype, seed)[1:, 3 : cols + 3]
    if layout == "second":
        return activations((rows, 2 * cols), dtype, seed)[:, ::2]
    if layout == "transposed":
        return activations((cols, rows), dtype, seed).T
    if layout == "expanded":
        return activations((1, cols), dtype, seed).expand(rows, cols)
    return activations((rows, cols), dtype, seed)


def with_special(packed: Packed, place: tuple[int, int], value: float) -> Packed:
    """The same pattern with one kept weight replaced (float kinds); ``place`` must be kept."""
    at = int(packed.matrix.positions[place])
    assert at >= 0, f"{place} is not kept"
    values = packed.values.clone()
    values[at] = value
    read = {
        oracle.Csr: oracle.read_csr,
        oracle.Nm: oracle.read_nm,
        oracle.Bitmap: oracle.read_bitmap,
    }
    matrix = read[type(packed.matrix)](stored(values), packed.structure.numpy(), packed.spec.dtype)
    return replace(packed, values=values, matrix=matrix)
