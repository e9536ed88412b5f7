"""Jobs for NVIDIA's bindings (`fakes.bindings`), in a subprocess: the tests' process must not import them."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import plugin_layer
from fakes.bindings import load_stub
from fakes.tensorrt import FakeTensorRT, random_pairs
from small_engines import write_sidecar

Request = dict[str, Any]
Answer = dict[str, Any]


def answer(job: tuple[str, Path, Request], send: Callable[[Any], None]) -> Answer:
    """The result of a function below, by name, with bindings from a folder of `make_bindings`.

    Everything in it is as JSON would return it. `version` is that of the bindings, `output` what was printed.
    """
    name, folder, request = job
    stub = load_stub(folder)
    sys.path.insert(0, str(folder))
    import tensorrt as trt

    result = {"version": trt.__version__} | globals()[name](trt, stub, request)
    sys.stderr.flush()
    printed = os.pread(2, 1 << 20, 0).decode(
        errors="replace"
    )  # a file; standard output is written to it, too
    return json.loads(json.dumps(result)) | {"output": printed}


def build_plugin_layers(trt: Any, stub: Any, request: Request) -> Answer:
    """Every step of a builder for plugin layers, each with the types and sizes of its inputs and a GPU.

    `modules` of the request are imported for their plugins. If `interpreted`, kernels are not compiled but
    run in Triton's interpreter.
    """
    from tfanet_plugins import register_all

    operations = register_all()
    for module in request["modules"]:
        importlib.import_module(module)
    recorder, results = None, []
    if request["interpreted"]:
        import simulate

        from tfanet_plugins import aot

        recorder = aot.compile_ptx = simulate.Recorder()
    for item in request["layers"]:
        result: dict[str, Any] = {}
        register_all(item["capability"])
        try:
            layer = plugin_layer.Layer(stub, trt, item["name"], item["inputs"])
            plugin_layer.build_layer(layer, item, result, recorder)
            if recorder:
                result["jit_error"] = simulate.jit_error(trt, item)
        except RuntimeError as error:
            result["failed"] = str(error)
        results.append(result)
    return {"operations": operations, "creators": plugin_layer.describe(trt), "layers": results}


def record_builds(trt: Any, stub: Any, request: Request) -> Answer:
    """The calls of `builder.build` for each of `builds`: options, plugins, and whether the engine opens."""
    from tfanet_engines import builder
    from tfanet_engines.options import BuildOptions

    results = []
    for item in request["builds"]:
        plugins = tuple(item["plugins"])
        with pytest.MonkeyPatch.context() as patch:
            fake = FakeTensorRT(trt, plugins=plugins, opens=item["opens"]).install(patch)
            batch = tuple(item["options"].get("batch", (1, 1, 8)))
            options = BuildOptions(**item["options"] | {"batch": batch})
            build = builder.Request(Path(item["onnx"]), "tensorrt", ("8.9",), plugins, options)
            plan, built = builder.build(build, lambda *step: None)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        result = {"plan": bytes(plan).decode(), "log": fake.log, "typed": typed}
        results.append(result | {"inspected": built.inspected is not None})
    return {"builds": results}


def run_plan(trt: Any, stub: Any, request: Request) -> Answer:
    """Inference of the file `plan` from several threads: errors, CUDA graphs, memory, and what was freed."""
    from tfanet.config import preset
    from tfanet_engines import open_engine

    plan, config = Path(request["plan"]), preset("tiny", image_size=32)
    write_sidecar(
        plan, config, builder="tensorrt", builder_version=trt.__version__,
        version_compatible=request["version_compatible"],
    )  # fmt: skip
    fake = FakeTensorRT(trt).install(pytest.MonkeyPatch())
    result: dict[str, Any] = {}
    with open_engine(plan, trust=True, contexts=2) as engine:
        calls = [random_pairs(count, config, seed) for seed, count in enumerate([1, 2, 8, 1, 2, 8, 1, 2] * 2)]
        with ThreadPoolExecutor(4) as threads:
            outputs = list(threads.map(lambda call: engine.infer(*call[:2]), calls))
        result["errors"] = [
            float(np.abs(output - logits).max()) for output, (*_, logits) in zip(outputs, calls, strict=True)
        ]
        result |= {"captures": fake.cuda.captures, "replays": fake.cuda.replays, "calls": len(calls)}
        images, tokens, logits = random_pairs(2, config)
        tensors = torch.from_numpy(images), torch.from_numpy(tokens)
        result["tensor_error"] = float(np.abs(engine.infer(*tensors).numpy() - logits).max())
        result |= {"context_bytes": engine.context_bytes, "batch": engine.batch}
        host_code = getattr(engine._runtime, "engine_host_code_allowed", False)
        result["host_code"] = host_code is True
    gc.collect()
    return result | {"events": fake.events}
