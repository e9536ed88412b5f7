"""Write a model repository for Triton Inference Server from engines and their sidecars."""

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
    "deprecation.py",
    "errors.py",
    "files.py",
    "lazy.py",
    "data/__init__.py",
    "data/images.py",
    "data/preprocess.py",
    "data/tokens.py",
)
"""The modules of tfanet that `model.py` imports; they need numpy, pillow, ftfy and regex."""
DEFAULT_ONNX_BATCH = 8
"""The default largest batch of an ONNX file, which has no profile."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Repository:
    """The repository that was written."""

    path: Path
    client_model: str
    core_model: str
    backend: str
    """Triton's backend of the core model: `tensorrt` or `onnxruntime`."""
    max_batch: int
    sidecar: Sidecar
    """The first engine's."""


@dataclass(frozen=True)
class _Engine:
    path: Path
    sidecar: Sidecar


def write_repository(
    out: str | Path, engines: Sequence[str | Path], *, name: str = "tfanet", max_batch: int | None = None
) -> Repository:
    """Write the repository to the folder `out`, atomically; `out` must be missing or empty.

    Args:
        engines: one ONNX file, or plans of one model for different GPUs.
        name: the model that clients call; the model that computes the logits is `name_core`.
        max_batch: of the core model; by default the plan's largest, 8 for an ONNX file.

    Raises `UserError` when an engine has no sidecar, does not match it, or cannot run in Triton, when the
    engines are not the same model, and when `out` is not empty.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"invalid model name {name!r}: use letters, digits, '_', '-' and '.'")
    read = [_read(Path(path)) for path in engines]
    backend = _backend(read)
    largest = _max_batch(read, max_batch)
    config = read[0].sidecar.model_config()
    core = f"{name}_core"
    with atomic_folder(out) as root:
        _write_core(root / core, read, backend, largest, config)
        _write_client(root / name, core, largest, config)
    return Repository(Path(out), name, core, backend, largest, read[0].sidecar)


def _read(path: Path) -> _Engine:
    if path.suffix not in (".onnx", ".plan"):
        raise UserError(f"{path} must be an .onnx or a .plan file; tfanet-export makes both")
    sidecar = Sidecar.read(path)
    sidecar.check_file(path)
    if sidecar.kind != path.suffix[1:]:
        raise UserError(f"the sidecar of {path} describes a file of kind {sidecar.kind}; {sidecar.remedy}")
    return _Engine(path, sidecar)


def _backend(engines: Sequence[_Engine]) -> str:
    """Triton's backend for the engines; raises `UserError` if there is none or the models differ."""
    first, *others = engines
    for engine in engines:
        if engine.sidecar.builder == "tensorrt_rtx":
            raise UserError(
                f"Triton has no backend for TensorRT-RTX plans such as {engine.path}; serve the .onnx file, "
                "or build the plan on the serving GPU with tfanet-export trt --backend tensorrt"
            )
    if first.sidecar.kind == "onnx":
        if others:
            raise UserError(f"give one ONNX file alone ({first.path}), or plans only")
        return "onnxruntime"
    for engine in others:
        if other := _difference(first.sidecar, engine.sidecar):
            raise UserError(
                f"{engine.path} and {first.path} differ in their {other}; serve them as two models"
            )
    return "tensorrt"


def _difference(first: Sidecar, other: Sidecar) -> str | None:
    """The first property that makes two plans different models, or None."""
    properties = {
        "kind": "kind",
        "config": "config",
        "weights_sha256": "weights",
        "precision": "precision",
        "batch": "batch profile",
        "builder_version": "version of TensorRT",
    }
    return next(
        (word for field, word in properties.items() if getattr(first, field) != getattr(other, field)), None
    )


def _max_batch(engines: Sequence[_Engine], asked: int | None) -> int:
    """The largest batch to configure; raises `UserError` unless the engine takes it and batches of 1."""
    path, profile = engines[0].path, engines[0].sidecar.batch
    smallest, _, largest = profile or (1, DEFAULT_ONNX_BATCH, MAX_BATCH)
    if smallest > 1:
        raise UserError(
            f"{path} needs batches of at least {smallest}, but Triton sends single images too; build it "
            "with --batch 1,N,M"
        )
    if asked is not None and not 1 <= asked <= largest:
        raise UserError(f"{path} takes batches of 1 to {largest}; --max-batch {asked} is outside")
    return asked or (largest if profile else DEFAULT_ONNX_BATCH)


def _file_names(engines: Sequence[_Engine], backend: str) -> dict[Path, str]:
    """The file name of each engine in the repository; raises `UserError` for two plans for one GPU."""
    if backend == "onnxruntime":
        return {engines[0].path: "model.onnx"}
    names: dict[str, Path] = {}
    for path, sidecar in ((engine.path, engine.sidecar) for engine in engines):
        capability = _capability(path, sidecar)
        name = f"{sm(capability)}.plan"
        if name in names:
            raise UserError(
                f"{path} and {names[name]} are both for compute capability {capability}; give one per GPU"
            )
        names[name] = path
    return {path: name for name, path in names.items()}


def _capability(path: Path, sidecar: Sidecar) -> str:
    """The compute capability of a plan; raises `UserError` unless it is exactly one.

    Triton chooses the plan by the GPU's own compute capability and has no ranges.
    """
    match sidecar.compute_capabilities:
        case [capability] if not capability.endswith("+"):
            return capability
        case several:
            raise UserError(
                f"{path} is for compute capabilities {', '.join(several or ['unknown'])}; build one plan "
                "per GPU, since Triton needs exactly one"
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
    """Copy an engine with its sidecar and its external weights, under the name that the file refers to."""
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
    """CLIP's vocabulary file in the installed open_clip, found without importing it (and PyTorch)."""
    package = find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    file = Path(folders[0]) / VOCABULARY if folders else None
    if file is None or not file.is_file():
        raise UserError(f"open_clip, which ships {VOCABULARY}, is not installed: pip install open_clip_torch")
    return file


def _note(engines: Sequence[_Engine]) -> str:
    """The comment in the core model's configuration: which engines are served."""
    from importlib.metadata import version

    sidecar = engines[0].sidecar
    files = ", ".join(engine.path.name for engine in engines)
    weights = (sidecar.weights_sha256 or "unknown")[:12]
    return (
        f"Written by tfanet {version('tfanet')} from {files}: {sidecar.precision}, weights {weights}, "
        f"{sidecar.builder} {sidecar.builder_version}."
    )
