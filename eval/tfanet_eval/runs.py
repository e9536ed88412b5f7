"""One engine over the splits of one data set, as a command asks for it."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet.data.refer import data_name, usual_split_by
from tfanet_eval.evaluation import Evaluation, evaluate
from tfanet_eval.results import Record, ResultsFile

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset
    from tfanet_engines.engine import Engine

_PACKAGES = ("tfanet", "numpy", "torch", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx", "tensorrt")


@dataclass(frozen=True)
class Request:
    """What to evaluate, on what and how."""

    engine: Path
    reference: Path | None
    data: Path
    dataset: str
    splits: tuple[str, ...]
    image_size: int | None = None
    limit: int | None = None
    batch: int = 1
    shuffled: bool = False
    convention: str = "original"
    trust: bool = False
    """Whether a plan that was built elsewhere is opened."""
    split_by: str | None = None
    """As of `ReferFiles.load`."""

    def of(self, engine: Path) -> Request:
        """The same of another engine, with this one's checkpoint as its reference."""
        return dataclasses.replace(self, engine=engine, reference=self.engine)

    def datasets(self) -> dict[str, ReferDataset]:
        """By split; `UserError` when one is missing or damaged."""
        from tfanet.data.refer import ReferDataset, ReferFiles

        files = ReferFiles.load(self.data, self.dataset, self.split_by)
        return {split: ReferDataset.of(files, split) for split in self.splits}

    @property
    def chosen_split_by(self) -> str:
        """The `split_by` that is read, also where none is given."""
        return self.split_by or usual_split_by(self.data, self.dataset)

    @property
    def data_name(self) -> str:
        """The data set's name for titles."""
        return data_name(self.dataset, self.chosen_split_by)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What a results file says of the run; two runs that agree in it measure the same."""
        from tfanet_engines.sidecar import model_sha256
        from tfanet_eval.reference import precision_of

        reference = self.reference
        return {
            "engine": self.engine.name,
            "engine_sha256": model_sha256(self.engine),
            "precision": precision_of(self.engine),
            "reference": reference.name if reference else None,
            "reference_sha256": model_sha256(reference) if reference else None,
            "dataset": self.dataset,
            "split_by": self.chosen_split_by,
            "data": str(self.data.resolve()),
            "splits": [*self.splits],
            "image_size": self.image_size,
            "limit": self.limit,
            "batch": self.batch,
            "shuffled_sentences": self.shuffled,
            "convention": self.convention,
        }


def environment(processes: int = 1) -> dict[str, Any]:
    """This machine, the versions that computed on it, and how many processes did so at once."""
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "cpu": _cpu(),
        "gpu": gpu,
        "processes": processes,
    }


@dataclass(frozen=True)
class Share:
    """What one process does of a run; all of them know the same records as done."""

    request: Request
    part: tuple[int, int] = (0, 1)
    """(k, n): this is process k of n."""
    file: ResultsFile | None = None
    done: tuple[Record, ...] = ()
    threads: int | None = None
    """Of one call of the engine; None leaves it to the runtime."""
    label: str | None = None
    """Of a progress bar, before the split's name; None shows none."""
    overlap: bool = True


@dataclass(frozen=True)
class Opened:
    """A request's engines and data, found sound."""

    engine: Engine
    reference: Engine | None
    datasets: dict[str, ReferDataset]


@contextmanager
def opened(request: Request, threads: int | None = None) -> Iterator[Opened]:
    """Raises as `open_engine` and `Request.datasets`."""
    from tfanet_engines import open_engine

    with ExitStack() as stack:
        engine = stack.enter_context(
            open_engine(request.engine, image_size=request.image_size, trust=request.trust, threads=threads)
        )
        datasets = request.datasets()
        size, against = engine.config.image_size, request.reference
        reference = None
        if against is not None:
            reference = stack.enter_context(open_engine(against, image_size=size, threads=threads))
        yield Opened(engine, reference, datasets)


def share_of(request: Request, results: Path | None, resume: bool, processes: int = 1) -> Share:
    """The whole of a run, its results file begun or continued; raises as `ResultsFile.start`."""
    if results is None:
        return Share(request)
    file = ResultsFile(results, request.description, environment(processes))
    return Share(request, file=file, done=tuple(file.start(resume=resume)))


def measure(
    models: Opened, share: Share, heard: Callable[[int], None] | None = None
) -> dict[str, Evaluation]:
    """The evaluation of this share of each split; `heard` is told how many expressions a call has done.

    Raises as `evaluate`.
    """
    request, file = share.request, share.file

    def keep(records: Sequence[Record]) -> None:
        if file is not None:
            file.append(records)
        if heard is not None:
            heard(len(records))

    return {
        split: evaluate(
            models.engine, dataset, reference=models.reference, limit=request.limit, batch=request.batch,
            shuffle_sentences=request.shuffled, convention=request.convention,
            progress=share.label and f"{share.label} {split}",
            done=[record for record in share.done if record.split == split],
            sink=keep, part=share.part, overlap=share.overlap,
        )
        for split, dataset in models.datasets.items()
    }  # fmt: skip


def run_splits(
    request: Request, *, results: Path | None = None, resume: bool = False, overlap: bool = True
) -> dict[str, Evaluation]:
    """The evaluation of each split, in this process.

    With `results` every expression is noted there as soon as it is measured; `resume` goes on with what a
    run that was interrupted left there. `overlap` is `evaluate`'s. Raises as `evaluate`, `open_engine` and
    `ResultsFile.start`.
    """
    with opened(request) as models:
        share = share_of(request, results, resume)
        share = dataclasses.replace(share, label=request.data_name, overlap=overlap)
        return whole([measure(models, share)], share.file)


def whole(parts: Sequence[dict[str, Evaluation]], file: ResultsFile | None) -> dict[str, Evaluation]:
    """The evaluations of a run whose shares gave `parts`, and its results file put in order.

    With a file they are as that has them: whoever reads it gets the same figures to the last bit.
    """
    found = {
        split: functools.reduce(Evaluation.beside, (part[split] for part in parts)) for split in parts[0]
    }
    if file is None:
        return found
    records = file.finish()
    return {
        split: dataclasses.replace(evaluation, records=tuple(r for r in records if r.split == split))
        for split, evaluation in found.items()
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
