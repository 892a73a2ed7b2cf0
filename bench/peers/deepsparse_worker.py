# SPDX-License-Identifier: Apache-2.0
"""DeepSparse behind the protocol of README.md; runs in an environment of its own.

Imports nothing of this project: deepsparse 1.8 needs Python below 3.12 and NumPy below 2.
"""

import os
import sys
import time

os.environ["NM_DISABLE_ANALYTICS"] = "1"
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the engine prints to stdout, which belongs to the protocol

import numpy as np  # noqa: E402
from deepsparse import Engine, __version__  # noqa: E402


def main() -> None:
    threads = int(sys.argv[1])
    loaded: dict = {}
    for line in sys.stdin:
        command, *words = line.split()
        try:
            if command == "hello":
                text = f"DeepSparse {'.'.join(__version__.split('.')[:2])}"
            elif command == "load":
                number, folder = words
                # A wrong model can end the process from C++; the caller reports that as well.
                batch = np.load(os.path.join(folder, "x0.npy")).shape[0]
                model = os.path.join(folder, "model.onnx")
                engine = Engine(model, batch, num_cores=threads)
                count = len(engine.input_names)
                xs = [np.load(os.path.join(folder, f"x{i}.npy")) for i in range(count)]
                order = [int(name[1:]) for name in engine.input_names]
                loaded[number] = (engine, [xs[i] for i in order], folder)
                text = ""
            elif command == "output":
                engine, xs, folder = loaded[words[0]]
                outputs = engine.run(xs)
                for name, y in zip(engine.output_names, outputs):  # noqa: B905
                    np.save(os.path.join(folder, f"{name}.npy"), y)
                text = ""
            elif command == "time":
                engine, xs, _ = loaded[words[0]]
                calls = int(words[1])
                start = time.perf_counter()
                for _ in range(calls):
                    engine.run(xs, val_inp=False)
                text = repr(time.perf_counter() - start)
            elif command == "unload":
                del loaded[words[0]]
                text = ""
            elif command == "quit":
                text = ""
            else:
                raise ValueError(f"unknown command {command}")
            print("ok", text, file=answers, flush=True)
        except Exception as error:  # any failure of the peer is an answer, not an end
            print("error", " ".join(str(error).split()), file=answers, flush=True)
        if command == "quit":
            return


main()
