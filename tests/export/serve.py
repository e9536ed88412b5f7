"""A fake of Triton's Python backend for the client model: `serve.py REPOSITORY < requests > responses`.

Only the packages that a server has to install can be imported. The core model is run by ONNX Runtime, or
fails as the request asks. Requests and responses are pickled lists of dictionaries.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import json
import pickle
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ABSENT = ("torch", "torchvision", "open_clip", "onnx", "typer", "rich", "safetensors", "tfanet_engines")


class Absent(importlib.abc.MetaPathFinder):
    """Makes the import of packages fail that a server does not need."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname.split(".")[0] in ABSENT:
            raise ImportError(f"{fullname} is not installed on this server")


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class PreferredMemory:
    def __init__(self, memory: int, device: int = 0) -> None:
        self.memory, self.device = memory, device


class ClientRequest:
    """A client's request."""

    def __init__(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> None:
        self._inputs = {name: Tensor(name, values) for name, values in inputs.items()}
        self._outputs = outputs

    def tensor(self, name: str) -> Tensor | None:
        return self._inputs.get(name)

    def requested_output_names(self) -> list[str]:
        return self._outputs


class Core:
    """A fake of the core model; `mode` is `works`, `fails` or `nan`."""

    mode = "works"

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.name = folder.name
        self._session = onnxruntime.InferenceSession(
            str(folder / "1" / "model.onnx"), options, ["CPUExecutionProvider"]
        )

    def respond(self, outputs: list[str], inputs: list[Tensor]) -> InferenceResponse:
        if self.mode == "fails":
            return InferenceResponse(error=TritonError("out of memory"))
        values = self._session.run(outputs, {tensor.name(): tensor.as_numpy() for tensor in inputs})
        if self.mode == "nan":
            values = [np.full_like(value, np.nan) for value in values]
        return InferenceResponse([Tensor(*pair) for pair in zip(outputs, values, strict=True)])


def fake_backend_utils(core: Core) -> types.ModuleType:
    """A fake of the module `triton_python_backend_utils` with what the model uses."""

    class InferenceRequest:
        def __init__(
            self,
            model_name: str,
            requested_output_names: list[str],
            inputs: list[Tensor],
            preferred_memory: PreferredMemory,
        ) -> None:
            assert model_name == core.name
            assert preferred_memory.memory == module.TRITONSERVER_MEMORY_CPU
            self._outputs, self._inputs = requested_output_names, inputs

        def exec(self) -> InferenceResponse:
            return core.respond(self._outputs, self._inputs)

    def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
        return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)

    module: Any = types.ModuleType("triton_python_backend_utils")
    module.TRITONSERVER_MEMORY_CPU = 0
    module.get_input_tensor_by_name = lambda request, name: request.tensor(name)
    module.get_output_tensor_by_name = get_output_tensor_by_name
    for cls in (Tensor, TritonError, InferenceRequest, InferenceResponse, PreferredMemory):
        setattr(module, cls.__name__, cls)
    return module


def load(repository: Path) -> tuple[Any, Core]:
    """The client model, initialized, and the core model that it calls."""
    (client,) = (path for path in repository.iterdir() if not path.name.endswith("_core"))
    core = Core(repository / f"{client.name}_core")
    sys.modules["triton_python_backend_utils"] = fake_backend_utils(core)
    file = client / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("model", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.meta_path.insert(0, Absent())
    spec.loader.exec_module(module)
    for name in ("tfanet", "tfanet.data.images", "tfanet.data.preprocess", "tfanet.data.tokens"):
        assert Path(sys.modules[name].__file__ or "").is_relative_to(file.parent), name
    text = (client / "config.pbtxt").read_text(encoding="utf-8")
    pairs = re.findall(r'parameters \{ key: "(\w+)" value \{ string_value: "([^"]*)" \} \}', text)
    config = {"parameters": {key: {"string_value": value} for key, value in pairs}}
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})
    return model, core


def main() -> None:
    requests = pickle.load(sys.stdin.buffer)
    responses = []
    with contextlib.redirect_stdout(sys.stderr):
        model, core = load(Path(sys.argv[1]))
        for request in requests:
            core.mode = request.get("core", "works")
            (response,) = model.execute([ClientRequest(request["inputs"], request["outputs"])])
            error = response.error()
            responses.append(
                {
                    "outputs": {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()},
                    "error": error and (error.message(), error.code()),
                }
            )
    pickle.dump(responses, sys.stdout.buffer)


if __name__ == "__main__":
    main()
