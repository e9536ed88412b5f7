"""The whole model in every runtime on this machine's GPU: `python benchmarks/engines_gpu.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from options import (
    RESULTS,
    BatchesOption,
    LimitOption,
    OutOption,
    check_threads,
    parse_batches,
    require_cuda,
)
from report import about_gpu, machine, show, write

from tfanet.console import new_app, run, track
from tfanet.errors import UserError, VerificationError
from tfanet.files import require_writable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from engines_measure import Candidate, Infer, Row
    from timing import Timer

    from tfanet.model import TFANet

PAIRS = 8
app = new_app("Time the whole model in PyTorch, ONNX Runtime and TensorRT on this machine's GPU.")


NOTES = (
    "ms: of a call from NumPy arrays to NumPy arrays after a warm-up, copies to and from the GPU included",
    "MiB: GPU memory in use, less what was in use before opening, without PyTorch's unused cache",
    f"error and agreement: against PyTorch FP32 on the CPU, on {PAIRS} real pairs, before timing",
    "status: ok, or why there is no time",
)


class Files(Protocol):
    """The deployed files, made when they are first used; errors of the export or build are raised then."""

    def onnx(self, precision: str) -> Path: ...

    def plan(self, backend: str) -> Path: ...


@app.command()
def engines_gpu(
    checkpoint: Annotated[Path | None, typer.Option(help="A .safetensors [the bundled tiny model].")] = None,
    batches: BatchesOption = "1,8",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each engine.")] = 100,
    limit: LimitOption = 20,
    out: OutOption = RESULTS,
) -> None:
    """Check every engine against PyTorch, time it host to host, and write the table to --out."""
    sizes = parse_batches(batches)
    if max(sizes) > PAIRS:
        raise UserError(f"--batches takes at most {PAIRS}, the largest batch size of the plans")
    require_writable(out / "engines-gpu")

    require_cuda("benchmarks/model_cpu.py times the model on a CPU")

    import torch
    from timing import wall_timer

    from tfanet.checkpoint import load_model
    from tfanet.weights import bundled

    source = checkpoint or bundled("tiny")
    model = load_model(source)
    about = machine(check_threads(None)) | about_gpu() | {"checkpoint": source.name, "repeats": repeats}
    device = torch.device("cuda", torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as folder:
        engines = candidates(source, model, device, MadeFiles(model, Path(folder)), torch.compile)
        report_on(engines, model, sizes, wall_timer(repeats, limit), used_bytes, about, out)


class MadeFiles:
    """Exports and builds the model in a folder."""

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


def candidates(
    checkpoint: Path, model: TFANet, device: torch.device, files: Files, compiler: Callable[..., Any]
) -> list[Candidate]:
    """All ways to run the model, PyTorch eager first; those that cannot run here fail when opened."""
    from engines_measure import Candidate

    from tfanet_engines.ort_session import CPU, CUDA, RTX

    def engine(path: Callable[[], Path], **options: Any) -> Callable[[], AbstractContextManager[Infer]]:
        return partial(open_file, path, **options)

    result = [
        Candidate("PyTorch eager", "fp32", engine(lambda: checkpoint)),
        Candidate("PyTorch eager, our kernels", "fp16", partial(deployed, model, device)),
    ]
    for name, mode in (("torch.compile", "default"), ("torch.compile, CUDA graphs", "reduce-overhead")):
        compiled = partial(compiler, mode=mode)
        result.append(Candidate(name, "fp16", partial(deployed, model, device, compiled)))
    for precision in ("fp32", "fp16"):
        network = partial(files.onnx, precision)
        result.append(Candidate("ONNX Runtime, CUDA", precision, engine(network, providers=[CUDA, CPU])))
    network = partial(files.onnx, "fp16")
    result.append(Candidate("ONNX Runtime, TensorRT-RTX", "fp16", engine(network, providers=[RTX, CPU])))
    for backend in ("tensorrt-rtx", "tensorrt"):
        plan = partial(files.plan, backend)
        result += [
            Candidate(f"{backend} plan, CUDA graphs", "fp16", engine(plan)),
            Candidate(f"{backend} plan", "fp16", engine(plan, cuda_graphs=False)),
            Candidate(f"{backend} plan, tensors", "fp16", engine(plan, tensors=True)),
        ]
    return result


@contextmanager
def open_file(path: Callable[[], Path], *, tensors: bool = False, **options: Any) -> Iterator[Infer]:
    """The engine of a file; with `tensors` it takes and returns tensors on its device."""
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
    """The half-precision model in PyTorch, as it is exported, compiled if a compiler is given."""
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
    """GPU memory in use by all processes, after PyTorch has released its unused cache."""
    import gc

    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def report_on(
    candidates: Sequence[Candidate],
    model: TFANet,
    batches: Sequence[int],
    timer: Timer,
    used_bytes: Callable[[], int],
    about: dict[str, Any],
    out: Path,
) -> list[Row]:
    """Measure the candidates and write the report again after each.

    Raises `VerificationError` at the end if logits exceeded the tolerances.
    """
    import torch
    from engines_measure import measure, records, table

    from tfanet_export.export import verification_pairs

    images, tokens, _ = verification_pairs(model, PAIRS)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    rows: list[Row] = []
    for candidate in track(candidates, "engines", len(candidates)):
        rows += measure(candidate, batches, images, tokens, expected, timer, used_bytes)
        paths = write("engines-gpu", out, about, [table(rows)], NOTES, records(rows))
    show([table(rows)], NOTES, paths)
    if wrong := [row for row in rows if row.wrong]:
        raise VerificationError(
            f"{len(wrong)} rows exceed the tolerances; the first: {wrong[0].name}: {wrong[0].why}"
        )
    return rows


if __name__ == "__main__":
    run(app)
