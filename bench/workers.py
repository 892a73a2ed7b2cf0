# SPDX-License-Identifier: Apache-2.0
"""Peers that live in a process of their own; bench/peers/README.md has the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from candidates import onnx_model
from harness import Candidate
from weights import Network


class PeerError(Exception):
    """The peer cannot do a case, or has died; the text is its own."""


class Worker:
    """One process, at one number of threads, that holds several networks at a time."""

    def __init__(self, name: str, command: Sequence[str], threads: int, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._count = 0
        self._loaded: list[int] = []
        self._stderr = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [*command, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        self.version = self._ask("hello")

    def _ask(self, *words: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(str(word) for word in words) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        state, _, text = answer.rstrip("\n").partition(" ")
        if state == "ok":
            return text
        if not answer:
            self._stderr.seek(0)
            text = f"ended without an answer; {self._stderr.read()[-500:].strip()}"
        raise PeerError(f"{self.name}: {text}")

    def candidate(self, network: Network) -> Candidate:
        """Load a network. Raises PeerError where the peer cannot run it."""
        number, self._count = self._count, self._count + 1
        folder = self._folder / str(number)
        folder.mkdir()
        _write(network, folder)
        self._ask("load", number, folder)
        self._loaded.append(number)
        self._ask("output", number)  # what cannot run is left out here, before anything is timed

        def output() -> np.ndarray:
            self._ask("output", number)
            files = [folder / f"y{i}.npy" for i in range(len(network.chains))]
            return np.concatenate([np.load(file).reshape(-1) for file in files])

        return Candidate(
            self.version or self.name,
            lambda calls: float(self._ask("time", number, calls)),
            output,
            network.reference,
            sparsity=network.sparsity,
            flops=network.flops,
        )

    def unload(self) -> None:
        """Forget all networks."""
        while self._loaded:
            self._ask("unload", self._loaded.pop())

    def close(self) -> None:
        with contextlib.suppress(PeerError):
            self._ask("quit")
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


def _write(network: Network, folder: Path) -> None:
    """The files that `load` names."""
    (folder / "model.onnx").write_bytes(onnx_model(network))
    description = []
    for i, chain in enumerate(network.chains):
        np.save(folder / f"x{i}.npy", chain.x.numpy())
        for j, layer in enumerate(chain.layers):
            np.save(folder / f"w{i}_{j}.npy", layer.weight.numpy())
            np.save(folder / f"b{i}_{j}.npy", layer.bias.numpy())
        description.append({"input": list(chain.x.shape), "layers": len(chain.layers)})
    (folder / "network.json").write_text(json.dumps(description))


@contextlib.contextmanager
def started(peers: Mapping[str, Sequence[str]], threads: int) -> Iterator[list[Worker]]:
    """All peers that start, at this number of threads; the others are named with their reason."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = []
        for i, (name, command) in enumerate(peers.items()):
            own = Path(folder, str(i))
            own.mkdir()
            try:
                worker = Worker(name, command, threads, own)
            except (PeerError, OSError) as error:
                print(f"peer left out: {error}")
                continue
            stack.callback(worker.close)
            workers.append(worker)
        yield workers


def candidates(workers: Sequence[Worker], networks: Sequence[Network]) -> list[Candidate]:
    """What the peers can run of the networks; those of the case before are unloaded."""
    found = []
    for worker in workers:
        try:
            worker.unload()
        except PeerError as error:
            print(f"peer left out: {error}")
            continue
        for network in networks:
            try:
                found.append(worker.candidate(network))
            except PeerError as error:
                print(f"peer left out: {error}")
    return found
