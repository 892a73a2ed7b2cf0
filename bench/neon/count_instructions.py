# SPDX-License-Identifier: Apache-2.0
"""Instructions per multiply-add in the inner loops of the NEON batch kernels, and of XNNPACK's.

Compiles for 64-bit ARM, disassembles, finds the innermost loops by their backward branches, and
counts. Static: it says how much work a kept weight is, not how fast a processor does it.

    python bench/neon/count_instructions.py --compiler aarch64-linux-gnu-g++
    ... --compiler "python -m ziglang c++ -target aarch64-linux-musl"
    ... --xnnpack FOLDER      the source tree of XNNPACK, for its kernels beside ours

Needs a disassembler for 64-bit ARM: --objdump, default aarch64-linux-gnu-objdump. Prints JSON
lines.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O3", "-DNDEBUG", "-fPIC", "-c"]
PEERS = (
    "32x1-minmax-neonfma-pipelined",
    "32x2-minmax-aarch64-neonfma",
    "32x4-minmax-aarch64-neonfma",
)
_BRANCH = re.compile(r"^(?:b\.\w+|b|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <")


@dataclass(frozen=True)
class Loop:
    """An innermost loop that multiplies."""

    compiler: str
    kernel: str
    instructions: int
    multiply_adds: int
    stack: int  # accesses to the stack: spilled registers
    prefetches: int

    @property
    def per_multiply_add(self) -> float:
        """Instructions for each of the four multiply-adds in a vector."""
        return self.instructions / (4 * self.multiply_adds)


def functions(objdump: str, obj: Path) -> dict[str, list[tuple[int, str]]]:
    """Address and text of every instruction, by function."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(obj)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in text.splitlines():
        if head := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            current = found.setdefault(head[1], [])
        elif body := re.match(r"^\s*([0-9a-f]+):\s+(.*)$", line):
            current.append((int(body[1], 16), body[2]))
    return found


def innermost(code: list[tuple[int, str]]) -> list[list[str]]:
    """Bodies of the loops that hold no other loop."""
    jumps = [(at, int(m[1], 16)) for at, text in code if (m := _BRANCH.match(text))]
    back = [(to, at) for at, to in jumps if to <= at]
    inner = [
        (to, at)
        for to, at in back
        if not any(to <= t and a < at for t, a in back if (t, a) != (to, at))
    ]
    return [[text for address, text in code if to <= address <= at] for to, at in inner]


def loops(compiler: str, objdump: str, source: Path, flags: list[str], name: str) -> list[Loop]:
    """Compile one file and count the loop of each kernel that holds the most vectors."""
    with tempfile.TemporaryDirectory() as folder:
        obj = Path(folder) / "kernel.o"
        command = [*shlex.split(compiler), *FLAGS, *flags, str(source), "-o", str(obj)]
        subprocess.run(command, check=True, cwd=ROOT)
        found = []
        for function, code in functions(objdump, obj).items():
            if not (match := re.search(name, function)):
                continue
            bodies = [(sum("fmla" in text for text in body), body) for body in innermost(code)]
            most, body = max(bodies, default=(0, []), key=lambda pair: pair[0])
            if most > 0:
                stack = sum("[sp" in text for text in body)
                prefetches = sum(text.startswith("prf") for text in body)
                found.append(Loop(compiler, match[0], len(body), most, stack, prefetches))
    return found


def xnnpack_loops(compiler: str, objdump: str, tree: Path) -> list[Loop]:
    """The same of XNNPACK's kernels; its pthreadpool.h is needed for one type only."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pthreadpool.h").write_text("typedef struct pthreadpool* pthreadpool_t;\n")
        c_compiler = compiler.replace("g++", "gcc").replace("clang++", "clang").replace("c++", "cc")
        for peer in PEERS:
            source = tree / f"src/f32-spmm/gen/f32-spmm-{peer}.c"
            flags = ["-std=c11", f"-I{tree}", f"-I{tree}/include", f"-I{folder}"]
            found += loops(c_compiler, objdump, source, flags, r"xnn_f32_spmm_minmax_ukernel_\w+")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    parser.add_argument("--xnnpack", type=Path)
    args = parser.parse_args()
    flags = ["-std=c++20", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
    source = ROOT / "csrc/base/simd/arm_neon.cc"
    found = loops(args.compiler, args.objdump, source, flags, r"BatchTile(?:As)?<.*?>(?=\()")
    if args.xnnpack is not None:
        found += xnnpack_loops(args.compiler, args.objdump, args.xnnpack.resolve())
    for loop in found:
        print(json.dumps(asdict(loop) | {"per_multiply_add": round(loop.per_multiply_add, 3)}))


if __name__ == "__main__":
    main()
