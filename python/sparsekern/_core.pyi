# SPDX-License-Identifier: Apache-2.0
"""NumPy-level access to sparsekern's core: packing, inspection, instruction sets.

Values travel as NumPy arrays: float32 as float32, int8 as int8, bfloat16 and float16 as the uint16
of their bits; the name of the type goes beside them. ``structure`` is a 1-D uint8 array. Both are
laid out as ``docs/formats.md`` says.
"""

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

__version__: str
compiler: str

class CsrInfo(TypedDict):
    version: int
    rows: int
    cols: int
    block_rows: int
    panel_groups: int
    steps: int
    kept: int
    tiles: int

class BitmapInfo(TypedDict):
    version: int
    rows: int
    cols: int
    kept: int
    panels: int
    words: int

class NmInfo(TypedDict):
    version: int
    rows: int
    cols: int
    n: int
    m: int
    window: int
    field_bits: int
    steps: int
    words: int
    panels: int

class GqsInfo(TypedDict):
    version: int
    rows: int
    cols: int
    group: int
    bits: int
    zeros: bool
    row_scale: bool
    groups: int
    row_groups: int
    task_groups: int
    tasks: int

def detected_isa() -> list[str]: ...
def active_isa() -> list[str]: ...
def set_isa(name: str | None) -> None: ...
def csr_pack(
    dense: NDArray[Any], dtype: str, mask: NDArray[np.bool_] | None = None, block_rows: int = 1
) -> tuple[NDArray[Any], NDArray[np.uint8]]: ...
def csr_unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]: ...
def csr_mask(structure: NDArray[np.uint8]) -> NDArray[np.bool_]: ...
def csr_validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None: ...
def csr_info(structure: NDArray[np.uint8]) -> CsrInfo: ...
def csr_transpose(
    structure: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]: ...
def csr_kernel(
    structure: NDArray[np.uint8],
    dtype: str,
    x_rows: int,
    conv: bool = False,
    int8_activations: bool = False,
) -> str: ...
def nm_pack(
    dense: NDArray[Any], dtype: str, n: int, m: int, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[Any], NDArray[np.uint8]]: ...
def nm_unpack(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> NDArray[Any]: ...
def nm_mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]: ...
def nm_validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None: ...
def nm_info(structure: NDArray[np.uint8]) -> NmInfo: ...
def nm_kernel(structure: NDArray[np.uint8], dtype: str, x_rows: int) -> str: ...
def bitmap_pack(
    dense: NDArray[Any], dtype: str, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[Any], NDArray[np.uint8]]: ...
def bitmap_unpack(
    values: NDArray[Any], structure: NDArray[np.uint8], dtype: str
) -> NDArray[Any]: ...
def bitmap_mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]: ...
def bitmap_validate(values: NDArray[Any], structure: NDArray[np.uint8], dtype: str) -> None: ...
def bitmap_info(structure: NDArray[np.uint8]) -> BitmapInfo: ...
def bitmap_kernel(structure: NDArray[np.uint8], dtype: str, x_rows: int) -> str: ...
def nm_mask_kernel(m: int, dtype: str) -> str: ...
def bitmap_kv_append_kernel(dtype: str) -> str: ...
def bitmap_attention_kernel(dtype: str) -> str: ...
def gqs_pack(
    codes: NDArray[np.int8],
    mask: NDArray[np.bool_],
    bits: int,
    group: int,
    zeros: bool,
    row_scale: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]: ...
def gqs_unpack(values: NDArray[Any], structure: NDArray[np.uint8]) -> NDArray[np.int8]: ...
def gqs_mask_of(structure: NDArray[np.uint8]) -> NDArray[np.bool_]: ...
def gqs_row_scale(structure: NDArray[np.uint8]) -> NDArray[np.float32] | None: ...
def gqs_validate(
    values: NDArray[Any], structure: NDArray[np.uint8], scale: NDArray[Any], scale_dtype: str
) -> None: ...
def gqs_info(structure: NDArray[np.uint8]) -> GqsInfo: ...
def gqs_kernel(
    structure: NDArray[np.uint8], x_rows: int, int8_activations: bool = False
) -> str: ...
