# SPDX-License-Identifier: Apache-2.0
"""Which N:M pattern holds at a step: dense first, one for good, or frames that get sparser."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from sparsekern._nm_mask import GROUP_SIZES
from sparsekern.patterns import NM

__all__ = ["Frames", "cubic_frames", "geometric_frames", "stepwise_frames"]


@dataclass(frozen=True)
class Frames:
    """Patterns in order, each from a step on; None is dense, as is what comes before the first.

    `Frames(((0, None), (500, NM(2, 4))))` trains densely for 500 steps.

    Args:
        frames: (step, pattern) pairs, steps rising strictly from 0 or more; the last is a pattern.

    Raises:
        TypeError, ValueError: something else.
    """

    frames: tuple[tuple[int, NM | None], ...]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("Frames: frames must have at least one entry, got none")
        for start, pattern in self.frames:
            if isinstance(start, bool) or not isinstance(start, int):
                raise TypeError(f"Frames: a step must be an integer, got {type(start).__name__}")
            if pattern is not None and not isinstance(pattern, NM):
                raise TypeError(
                    f"Frames: a pattern must be an NM or None, got {type(pattern).__name__}"
                )
        starts = [start for start, _ in self.frames]
        if starts[0] < 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"Frames: steps must rise strictly from 0 or more, got {starts}")
        if self.frames[-1][1] is None:
            raise ValueError("Frames: the last entry must have a pattern, got None")

    @property
    def last(self) -> NM:
        """The pattern that stays."""
        pattern = self.frames[-1][1]
        assert pattern is not None
        return pattern

    def at(self, step: int) -> NM | None:
        """The pattern at a step."""
        index = bisect_right([start for start, _ in self.frames], step) - 1
        return None if index < 0 else self.frames[index][1]


def stepwise_frames(target: NM, begin: int, end: int) -> Frames:
    """Frames (M-1):M, then M/2^i : M down to the target, equally long between two steps.

    SdGf "stepwise" of Bambhaniya et al. 2024, arXiv:2402.04744: floor(log2(M / N)) + 1 frames,
    dense before `begin`, the target from `end` on.

    Raises:
        ValueError: fewer steps than frames, or begin < 0.
    """
    n, m = target.n, target.m
    kept = [m - 1]
    i = 1
    while m >> i >= n:
        kept.append(m >> i)
        i += 1
    if len(kept) > 1 and kept[1] == kept[0]:  # M = 2: 1:2 is both
        kept.pop()
    return _equal("stepwise_frames", [NM(k, m) for k in kept], target, begin, end)


def geometric_frames(target: NM, begin: int, end: int, frames: int = 4) -> Frames:
    """Frames N 2^j : M 2^j of one ratio and falling group size, equally long between two steps.

    SdGf "fine" of Bambhaniya et al. 2024, arXiv:2402.04744, where it has 4 frames: j = frames - 1,
    ..., 0. Dense before `begin`, the target from `end` on.

    Raises:
        ValueError: fewer than 2 frames or groups of more than 32; fewer steps than frames;
            begin < 0.
    """
    if frames < 2 or target.m << (frames - 1) > max(GROUP_SIZES):
        raise ValueError(
            f"geometric_frames: frames must be at least 2 and give groups of at most "
            f"{max(GROUP_SIZES)}, got {frames} frames of groups up to "
            f"{target.m << max(0, frames - 1)}"
        )
    patterns = [NM(target.n << j, target.m << j) for j in range(frames - 1, -1, -1)]
    return _equal("geometric_frames", patterns, target, begin, end)


def cubic_frames(target: NM, begin: int, end: int) -> Frames:
    """Gradual N:M: from M-1 of M down to N of M, quickly first, dense before `begin`.

    At the share p of the way from `begin` to `end`, M - (M - N) (1 - (1 - p)^3) are kept, rounded
    up, at most M - 1: the schedule of Zhu & Gupta 2017, arXiv:1710.01878, eq. 1.

    Raises:
        ValueError: begin < 0 or end <= begin.
    """
    if not 0 <= begin < end:
        raise ValueError(
            f"cubic_frames: steps must satisfy 0 <= begin < end, got {begin} and {end}"
        )
    n, m = target.n, target.m
    frames: list[tuple[int, NM | None]] = []
    for step in range(begin, end + 1):
        left = (end - step) ** 3 * (m - n)
        kept = min(m - 1, n - (-left // (end - begin) ** 3))
        if not frames or frames[-1][1] != NM(kept, m):
            frames.append((step, NM(kept, m)))
    return Frames(tuple(frames))


def _equal(operator: str, patterns: list[NM], target: NM, begin: int, end: int) -> Frames:
    if begin < 0 or end - begin < len(patterns):
        raise ValueError(
            f"{operator}: between begin and end must be a step for each of {len(patterns)} frames, "
            f"got {begin} and {end}"
        )
    frames: list[tuple[int, NM | None]] = [
        (begin + (end - begin) * i // len(patterns), pattern) for i, pattern in enumerate(patterns)
    ]
    if patterns[-1] != target:
        frames.append((end, target))
    return Frames(tuple(frames))
