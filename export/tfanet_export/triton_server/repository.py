"""From engines and their sidecars to a model repository for Triton Inference Server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import tfanet
from tfanet.config import TFANetConfig
from tfanet.data.preprocess import token_rows
from tfanet.data.tokens import VOCABULARY, BytePairs
from tfanet.errors import UserError
from tfanet.files import atomic_folder
from tfanet.signature import MAX_BATCH
from tfanet_engines.sidecar import Sidecar, external_data_path, sidecar_path
from tfanet_engines.targets import sm
from tfanet_export.triton_server.config import WARMUP_TOKENS, client_config, core_config

COPIED = (
    "__init__.py",
    "errors.py",
    "files.py",
    "lazy.py",
    "data/__init__.py",
    "data/images.py",
    "data/preprocess.py",
    "data/tokens.py",
)
"""The modules of tfanet that `model.py` needs; they need numpy, pillow, ftfy and regex."""
USUAL_BATCH = 8
"""The largest batch of an ONNX file, which itself has no bound, unless another is asked for."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Repository:
    """What was written."""

    path: Path
    client_model: str
    core_model: str
    backend: str
    """Triton's: `tensorrt` or `onnxruntime`."""
    max_batch: int
    sidecar: Sidecar
    """Of the first engine."""


@dataclass(frozen=True)
class _Engine:
    path: Path
    sidecar: Sidecar


def write_repository(
    out: str | Path, engines: Sequence[str | Path], *, name: str = "tfanet", max_batch: int | None = None
) -> Repository:
    """Write the folder `out`, which must not exist or be empty: whole, or not at all.

    `engines` is one ONNX file, or plans of one model for different GPUs. `name` is the model that clients
    call; the one that computes is `name_core`, and `max_batch` is its, by default the plan's largest.

    Raises `UserError` when an engine lacks its sidecar, is not its sidecar's file, or cannot run in Triton,
    when the engines do not belong together, and when `out` holds anything.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"a model's name is made of letters, digits, '_', '-' and '.', not {name!r}")
    found = [_read(Path(path)) for path in engines]
    backend = _backend(found)
    largest = _max_batch(found, max_batch)
    config = found[0].sidecar.model_config()
    core = f"{name}_core"
    with atomic_folder(out) as root:
        _write_core(root / core, found, backend, largest, config)
        _write_client(root / name, core, largest, config)
    return Repository(Path(out), name, core, backend, largest, found[0].sidecar)


def _read(path: Path) -> _Engine:
    if path.suffix not in (".onnx", ".plan"):
        raise UserError(f"{path} must be an .onnx or a .plan file; tfanet-export makes both")
    sidecar = Sidecar.read(path)
    sidecar.check_file(path)
    if sidecar.kind != path.suffix[1:]:
        raise UserError(f"the sidecar of {path} describes a file of kind {sidecar.kind}; {sidecar.remedy}")
    return _Engine(path, sidecar)


def _backend(engines: Sequence[_Engine]) -> str:
    """Triton's backend for the engines; `UserError` when there is none or they do not belong together."""
    first, *others = engines
    for engine in engines:
        if engine.sidecar.builder == "tensorrt_rtx":
            raise UserError(
                f"{engine.path} is a plan of TensorRT-RTX, which Triton has no backend for; serve the .onnx "
                "file, or build the plan on the serving GPU with tfanet-export trt --backend tensorrt"
            )
    if first.sidecar.kind == "onnx":
        if others:
            raise UserError(f"an ONNX file runs on every GPU: give {first.path} alone, or plans only")
        return "onnxruntime"
    for engine in others:
        if other := _difference(first.sidecar, engine.sidecar):
            raise UserError(f"{engine.path} has another {other} than {first.path}; serve them as two models")
    return "tensorrt"


def _difference(first: Sidecar, other: Sidecar) -> str | None:
    """What keeps two plans from being the same model for two GPUs, or None."""
    facts = {
        "kind": "kind",
        "config": "config",
        "weights_sha256": "weights",
        "precision": "precision",
        "batch": "batch profile",
        "builder_version": "version of TensorRT",
    }
    return next(
        (word for field, word in facts.items() if getattr(first, field) != getattr(other, field)), None
    )


def _max_batch(engines: Sequence[_Engine], asked: int | None) -> int:
    """The largest batch to offer; `UserError` where the engine does not take it, or no single picture."""
    path, profile = engines[0].path, engines[0].sidecar.batch
    smallest, _, largest = profile or (1, USUAL_BATCH, MAX_BATCH)
    if smallest > 1:
        raise UserError(
            f"{path} takes no fewer than {smallest} pictures at once, and Triton sends single ones; build it "
            "with --batch 1,N,M"
        )
    if asked is not None and not 1 <= asked <= largest:
        raise UserError(
            f"{path} takes 1 to {largest} pictures at once; --max-batch {asked} is not among them"
        )
    return asked or (largest if profile else USUAL_BATCH)


def _file_names(engines: Sequence[_Engine], backend: str) -> dict[Path, str]:
    """What each engine is called in the repository; `UserError` for two plans for the same GPU."""
    if backend == "onnxruntime":
        return {engines[0].path: "model.onnx"}
    names: dict[str, Path] = {}
    for path, sidecar in ((engine.path, engine.sidecar) for engine in engines):
        capability = _capability(path, sidecar)
        name = f"{sm(capability)}.plan"
        if name in names:
            raise UserError(
                f"{path} and {names[name]} are both for compute capability {capability}; give one plan a GPU"
            )
        names[name] = path
    return {path: name for name, path in names.items()}


def _capability(path: Path, sidecar: Sidecar) -> str:
    """The one compute capability a plan is for: Triton looks a GPU's own up and knows no ranges."""
    match sidecar.compute_capabilities:
        case [capability] if not capability.endswith("+"):
            return capability
        case wanted:
            raise UserError(
                f"{path} is for compute capabilities {', '.join(wanted or ['unknown'])}, and Triton chooses "
                "a plan by a single one; build a plan for each GPU"
            )


def _write_core(
    folder: Path, engines: Sequence[_Engine], backend: str, max_batch: int, config: TFANetConfig
) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    names = _file_names(engines, backend)
    for path, name in names.items():
        _copy_engine(path, version / name)
    plans = {_capability(e.path, e.sidecar): names[e.path] for e in engines} if backend == "tensorrt" else {}
    text = core_config(
        folder.name, config, backend=backend, max_batch=max_batch, plans=plans, note=_note(engines)
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    (folder / "warmup").mkdir()
    row = token_rows(BytePairs(_vocabulary()), ["the red mug on the left"], config.token_length)
    (folder / "warmup" / WARMUP_TOKENS).write_bytes(row.astype("<i8").tobytes())


def _copy_engine(source: Path, target: Path) -> None:
    """Copy an engine with its sidecar, and its external weights under the name that the file calls them."""
    shutil.copyfile(source, target)
    shutil.copyfile(sidecar_path(source), sidecar_path(target))
    weights = external_data_path(source)
    if weights.exists():
        shutil.copyfile(weights, target.with_name(weights.name))


def _write_client(folder: Path, core: str, max_batch: int, config: TFANetConfig) -> None:
    version = folder / "1"
    package = Path(tfanet.__file__).parent
    for name in COPIED:
        target = version / "tfanet" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / name, target)
    shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
    shutil.copyfile(_vocabulary(), version / VOCABULARY)
    text = client_config(folder.name, core, config, max_batch=max_batch)
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")


def _vocabulary() -> Path:
    """CLIP's merges in the installed open_clip, found without importing it and thus PyTorch."""
    package = find_spec("open_clip")
    places = package.submodule_search_locations if package else None
    file = Path(places[0]) / VOCABULARY if places else None
    if file is None or not file.is_file():
        raise UserError(f"open_clip, which ships {VOCABULARY}, is not installed: pip install open_clip_torch")
    return file


def _note(engines: Sequence[_Engine]) -> str:
    """What was put into the repository, in a line."""
    from importlib.metadata import version

    sidecar = engines[0].sidecar
    files = ", ".join(engine.path.name for engine in engines)
    weights = (sidecar.weights_sha256 or "unknown")[:12]
    return (
        f"Written by tfanet {version('tfanet')} from {files}: {sidecar.precision}, weights {weights}, "
        f"{sidecar.builder} {sidecar.builder_version}."
    )
