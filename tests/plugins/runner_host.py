"""Our runner over NVIDIA's bindings, library and GPU played: `runner_host.py FOLDER ANSWER < request`.

FOLDER is what `wheels.py` makes; the request is JSON with `plan`, the file to open. The played classes have
the names and parameters of TensorRT's own (`tests/engines/played.py`). ANSWER says what `tests/engines` asks
of TensorRT-RTX: the distance from the played network, and what was captured, replayed and freed when.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from host import load_stand_in

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from played import Played, pairs_of, write_sidecar

from tfanet.config import preset
from tfanet_engines import open_engine


def main() -> None:
    folder, request = Path(sys.argv[1]), json.load(sys.stdin)
    load_stand_in(folder)
    sys.path.insert(0, str(folder))
    import tensorrt as trt

    plan, config = Path(request["plan"]), preset("tiny", image_size=32)
    fields = {"builder": "tensorrt", "builder_version": trt.__version__}
    write_sidecar(plan, config, **fields, version_compatible=request["version_compatible"])
    machine = Played(trt).install(pytest.MonkeyPatch())
    answer: dict = {"version": trt.__version__}
    with open_engine(plan, trust=True, contexts=2) as engine:
        calls = [pairs_of(count, config, seed) for seed, count in enumerate([1, 2, 8, 1, 2, 8, 1, 2] * 2)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda call: engine.infer(*call[:2]), calls))
        answer["errors"] = [
            float(np.abs(ours - logits).max()) for ours, (*_, logits) in zip(found, calls, strict=True)
        ]
        answer |= {"captures": machine.captures, "replays": machine.replays, "calls": len(calls)}
        images, tokens, logits = pairs_of(2, config)
        tensors = torch.from_numpy(images), torch.from_numpy(tokens)
        answer["tensor_error"] = float(np.abs(engine.infer(*tensors).numpy() - logits).max())
        answer |= {"context_bytes": engine.context_bytes, "batch": engine.batch}
        host_code = getattr(engine._runtime, "engine_host_code_allowed", False)
        answer["host_code"] = host_code is True
    gc.collect()
    answer["events"] = machine.events
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
    # The bindings' objects have no owner here who could take them down in the right order.
    os._exit(0)


if __name__ == "__main__":
    main()
