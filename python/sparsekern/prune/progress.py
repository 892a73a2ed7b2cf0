# SPDX-License-Identifier: Apache-2.0
"""A one-line progress display on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

ProgressCallback = Callable[[int, int, str], None]


class Progress:
    """Reports "done of total, current layer, time left".

    `sink` is False (silent), True (standard error) or a callable given (done, total, name). Lines
    begin with `operator`, and count `unit`.
    """

    def __init__(
        self,
        sink: bool | ProgressCallback,
        total: int,
        operator: str = "prune_",
        unit: str = "layers",
    ) -> None:
        self._sink = sink
        self._operator, self._unit = operator, unit
        self._total = total
        self._done = 0
        self._begin = time.monotonic()

    def advance(self, name: str) -> None:
        """One more layer is finished."""
        self._done += 1
        if callable(self._sink):
            self._sink(self._done, self._total, name)
        elif self._sink:
            spent = time.monotonic() - self._begin
            left = spent / self._done * (self._total - self._done)
            end = "\n" if self._done == self._total else ""
            count = f"{self._done}/{self._total} {self._unit}"
            line = f"{self._operator}: {count}, {left:.0f} s left  {name}"
            sys.stderr.write(f"\r\x1b[K{line}{end}")
            sys.stderr.flush()
