"""Our builder over NVIDIA's bindings, the library played: `builder_host.py FOLDER ANSWER < request`.

FOLDER is what `wheels.py` makes; the request is JSON with `builds`, each the fields of a `Request`. Types and
flags are TensorRT's own; builder, parser and runtime, which the lean runtime has not, are played by objects
that record every call and refuse a name that the real class lacks, or more arguments than it takes. ANSWER is
what was recorded for each build.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from host import load_stand_in

from tfanet_engines.options import BuildOptions

PLAN = b"a plan"
ENGINE = {"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Half", "DataType": "FP16"}]}] * 3}


class Played:
    """An object of `real`: attributes and methods are its own, by name and number of arguments."""

    def __init__(self, real: Any, log: list, **answers: Any) -> None:
        vars(self).update(_real=real, _log=log, _answers=answers)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._real, name, None)
        if member is None:
            raise AttributeError(f"{self._real.__name__} has no {name}")
        if not callable(member):
            return self._answers[name]
        counts = {
            len(re.findall(r", \w+:", text))
            for text in re.findall(rf"^(?:\d+\. )?{name}\(self: (.*)\) ->", member.__doc__, re.MULTILINE)
        }

        def call(*arguments: Any) -> Any:
            if not any(len(arguments) <= count for count in counts):
                raise TypeError(
                    f"{self._real.__name__}.{name} takes {counts} arguments, not {len(arguments)}"
                )
            self._log.append([name, *map(_said, arguments)])
            answer = self._answers.get(name)
            return answer(*arguments) if callable(answer) else answer

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(self._real, name, None), property):
            raise AttributeError(f"{self._real.__name__} has no attribute {name} that can be set")
        self._log.append([name, _said(value)])
        self._answers[name] = value


def _said(value: Any) -> Any:
    if isinstance(value, Played):
        return value._real.__name__
    if isinstance(value, tuple):
        return [*value]
    if isinstance(value, (int, str)) and not hasattr(value, "name"):
        return value
    return getattr(value, "name", None) or type(value).__name__


def play(trt: Any, log: list, plugins: list[str], engine_opens: bool) -> None:
    """Put played classes in the place of those that need the library."""

    def tensor(name: str, dtype: str, shape: tuple) -> Any:
        return SimpleNamespace(name=name, dtype=getattr(trt.DataType, dtype), shape=shape)

    inputs = [tensor("image", "UINT8", (-1, 32, 32, 3)), tensor("tokens", "INT64", (-1, 5))]
    outputs = [tensor("mask_logits", "FLOAT", (-1, 32, 32))]
    layers = [
        SimpleNamespace(
            name=name, type=trt.LayerType.PLUGIN_V3, num_outputs=1,
            get_output=lambda index: tensor("x", "HALF", (1,)),
        )
        for name in plugins
    ]  # fmt: skip
    network = Played(
        trt.INetworkDefinition, [], num_layers=len(layers), num_inputs=2, num_outputs=1,
        get_layer=layers.__getitem__, get_input=inputs.__getitem__, get_output=outputs.__getitem__,
    )  # fmt: skip
    cache = Played(trt.ITimingCache, log, serialize=lambda: b"times", combine=True)
    config = Played(
        trt.IBuilderConfig, log, create_timing_cache=lambda data: cache, set_timing_cache=True,
        get_timing_cache=cache, add_optimization_profile=0,
    )  # fmt: skip
    profile = Played(trt.IOptimizationProfile, log)
    builder = Played(
        trt.Builder, log, create_network=network, create_builder_config=config,
        create_optimization_profile=profile, build_serialized_network=PLAN,
    )  # fmt: skip
    parser = Played(trt.OnnxParser, log, parse=True, parse_from_file=True)
    inspector = Played(trt.EngineInspector, log, get_engine_information=json.dumps(ENGINE))
    engine = Played(trt.ICudaEngine, log, create_engine_inspector=inspector) if engine_opens else None
    runtime = Played(trt.Runtime, log, deserialize_cuda_engine=engine)
    trt.Builder = lambda logger: builder
    trt.OnnxParser = lambda network, logger: parser
    trt.Runtime = lambda logger: runtime


def main() -> None:
    folder, request = Path(sys.argv[1]), json.load(sys.stdin)
    load_stand_in(folder)
    sys.path.insert(0, str(folder))
    import tensorrt as trt

    from tfanet_engines import builder

    real, answers = dict(vars(trt)), []
    for item in request["builds"]:
        log: list = []
        play(trt, log, item["plugins"], item["engine_opens"])
        options = BuildOptions(**item["options"] | {"batch": tuple(item["options"].get("batch", (1, 1, 8)))})
        asked = builder.Request(Path(item["onnx"]), "tensorrt", ("8.9",), tuple(item["plugins"]), options)
        plan, built = builder.build(asked, lambda *step: None)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        found = {"plan": bytes(plan).decode(), "log": log, "typed": typed}
        answers.append(found | {"inspected": built.inspected is not None})
        vars(trt).update(real)
    Path(sys.argv[2]).write_text(
        json.dumps({"version": trt.__version__, "builds": answers}), encoding="utf-8"
    )
    # The bindings' objects have no owner here who could take them down in the right order.
    os._exit(0)


if __name__ == "__main__":
    main()
