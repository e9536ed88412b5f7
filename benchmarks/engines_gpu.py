"""The whole model in every runtime of this machine's GPU: `python benchmarks/engines_gpu.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from report import RESULTS, check_threads, machine, write
from scan_gpu import parse_batches

from tfanet.console import new_app, run, say, track
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from engines_measure import Infer, Rival, Row, Timer

    from tfanet.model import TFANet

PAIRS = 8
app = new_app("Time the whole model in PyTorch, ONNX Runtime and TensorRT on this machine's GPU.")


class Files(Protocol):
    """Makes the deployed files when they are first asked for; raises what makes that fail."""

    def onnx(self, precision: str) -> Path: ...

    def plan(self, backend: str) -> Path: ...


@app.command()
def engines_gpu(
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors [the bundled tiny model].")] = None,
    batches: Annotated[str, typer.Option(help="Pictures at a time, comma-separated.")] = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 100,
    limit: Annotated[float, typer.Option(help="Seconds to time one figure; slow ones run less often.")] = 20,
    out: Annotated[
        Path, typer.Option(help="Folder of the report.", show_default="benchmarks/results")
    ] = RESULTS,
) -> None:
    """Check every engine against PyTorch, time it from array to array, and write the table to --out."""
    sizes = parse_batches(batches)
    if max(sizes) > PAIRS:
        raise UserError(f"--batches takes at most {PAIRS} pictures, the largest batch of the plans")
    require_writable(out / "engines-gpu")

    import torch

    if not torch.cuda.is_available():
        raise UserError("no CUDA device here; benchmarks/model_cpu.py times the model on a CPU")
    from engines_measure import wall_timer
    from gpu_measure import about_gpu

    from tfanet.checkpoint import load_model
    from tfanet.weights import bundled

    source = checkpoint or bundled("tiny")
    model = load_model(source)
    about = machine(check_threads(None)) | about_gpu() | {"checkpoint": source.name, "repeats": repeats}
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as folder:
        contenders = rivals(source, model, device, MadeFiles(model, Path(folder)), torch.compile)
        report_on(contenders, model, sizes, wall_timer(repeats, limit), used_bytes, about, out)


class MadeFiles:
    """The model exported and built in a folder."""

    def __init__(self, model: TFANet, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.onnx = cache(self._onnx)
        self.plan = cache(self._plan)

    def _onnx(self, precision: str) -> Path:
        from tfanet_export import export_onnx

        path = self._folder / f"{precision}.onnx"
        export_onnx(self._model, path, fp16=precision == "fp16", target="gpu", pairs=1)
        return path

    def _plan(self, backend: str) -> Path:
        from tfanet_engines import BuildOptions, build_plan

        path = self._folder / f"{backend}.plan"
        options = BuildOptions(target="current", batch=(1, 1, PAIRS))
        build_plan(self.onnx("fp16"), path, options, backend=backend)
        return path


def rivals(
    checkpoint: Path, model: TFANet, device: torch.device, files: Files, compiler: Callable[..., Any]
) -> list[Rival]:
    """Every way to run the model here, the reference first; what cannot run says so when it is opened."""
    from engines_measure import Rival

    from tfanet_engines.ort_session import CPU, CUDA, RTX

    def engine(path: Callable[[], Path], **options: Any) -> Callable[[], AbstractContextManager[Infer]]:
        return partial(open_rival, path, **options)

    found = [
        Rival("PyTorch eager", "fp32", engine(lambda: checkpoint)),
        Rival("PyTorch eager, our kernels", "fp16", partial(deployed, model, device)),
    ]
    for name, mode in (("torch.compile", "default"), ("torch.compile, CUDA graphs", "reduce-overhead")):
        compiled = partial(compiler, mode=mode)
        found.append(Rival(name, "fp16", partial(deployed, model, device, compiled)))
    for precision in ("fp32", "fp16"):
        network = partial(files.onnx, precision)
        found.append(Rival("ONNX Runtime, CUDA", precision, engine(network, providers=[CUDA, CPU])))
    network = partial(files.onnx, "fp16")
    found.append(Rival("ONNX Runtime, TensorRT-RTX", "fp16", engine(network, providers=[RTX, CPU])))
    for backend in ("tensorrt-rtx", "tensorrt"):
        plan = partial(files.plan, backend)
        found += [
            Rival(f"{backend} plan, CUDA graphs", "fp16", engine(plan)),
            Rival(f"{backend} plan", "fp16", engine(plan, cuda_graphs=False)),
            Rival(f"{backend} plan, tensors", "fp16", engine(plan, tensors=True)),
        ]
    return found


@contextmanager
def open_rival(path: Callable[[], Path], *, tensors: bool = False, **options: Any) -> Iterator[Infer]:
    """An engine; with `tensors` the arrays are made tensors of its device on the way."""
    import torch

    from tfanet_engines import open_engine

    with open_engine(path(), contexts=1, **options) as engine:

        def with_tensors(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            inputs = (torch.from_numpy(x).to(engine.device) for x in (images, tokens))
            return engine.infer(*inputs).cpu().numpy()

        yield with_tensors if tensors else engine.infer


@contextmanager
def deployed(
    model: TFANet, device: torch.device, compiler: Callable[..., Any] | None = None
) -> Iterator[Infer]:
    """The half-precision model that is exported, in PyTorch, compiled if a compiler is given."""
    import torch

    from tfanet_export.deploy import deployment_model

    module = deployment_model(model, fp16=True).to(device)
    forward = compiler(module) if compiler else module

    def infer(images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            inputs = (torch.from_numpy(x).to(device) for x in (images, tokens))
            return forward(*inputs).float().cpu().numpy()

    yield infer


def used_bytes() -> int:
    """Memory of the GPU that is taken, by anybody, after PyTorch gave back what it does not need."""
    import gc

    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def report_on(
    contenders: Sequence[Rival],
    model: TFANet,
    batches: Sequence[int],
    timer: Timer,
    gauge: Callable[[], int],
    about: dict[str, Any],
    out: Path,
) -> list[Row]:
    """Measure one rival after the other; the report is written again after each.

    Raises `VerificationError` at the end where logits were out of bounds.
    """
    import torch
    from engines_measure import measure, records, table

    from tfanet_export.export import verification_pairs

    images, tokens, _ = verification_pairs(model, PAIRS)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    rows: list[Row] = []
    for rival in track(contenders, "engines", len(contenders)):
        rows += measure(rival, batches, images, tokens, expected, timer, gauge)
        paths = write("engines-gpu", out, about, [table(rows)], NOTES, records(rows))
    table(rows).show()
    for line in (*NOTES, *(f"wrote {path}" for path in paths)):
        say(line)
    if wrong := [row for row in rows if row.wrong]:
        raise VerificationError(
            f"{len(wrong)} figures out of bounds; the first: {wrong[0].name}: {wrong[0].why}"
        )
    return rows


NOTES = (
    "ms: of a call from NumPy arrays to NumPy arrays, copies to and from the GPU included, warmed up before",
    "MiB: memory of the GPU taken since before the engine was opened, PyTorch's unused cache given back",
    f"error and agreement: against PyTorch FP32 on the CPU, on {PAIRS} real pairs, before timing",
    "loaded: yes, or what the runtime said",
)


if __name__ == "__main__":
    run(app)
