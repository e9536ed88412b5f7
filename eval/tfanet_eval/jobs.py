"""Evaluation jobs: one engine on the splits of one data set, in one process or as one part of several."""

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
class EvaluationJob:
    """Which engine to evaluate, on which data, and how."""

    engine: Path
    reference: Path | None
    """The checkpoint to compare with."""
    data: Path
    dataset: str
    splits: tuple[str, ...]
    image_size: int | None = None
    limit: int | None = None
    """Samples per split."""
    batch: int = 1
    shuffled: bool = False
    """Every image gets an expression of another image."""
    convention: str = "original"
    trust: bool = False
    """Open plans that were built on another machine."""
    split_by: str | None = None
    """As in `ReferFiles.load`."""

    def for_engine(self, engine: Path) -> EvaluationJob:
        """The same job for another engine, with this job's engine as its reference."""
        return dataclasses.replace(self, engine=engine, reference=self.engine)

    def datasets(self) -> dict[str, ReferDataset]:
        """The data sets by split; raises `UserError` if one is missing or damaged."""
        from tfanet.data.refer import ReferDataset, ReferFiles

        files = ReferFiles.load(self.data, self.dataset, self.split_by)
        return {split: ReferDataset.of(files, split) for split in self.splits}

    @property
    def effective_split_by(self) -> str:
        """`split_by`, or the default of the data set."""
        return self.split_by or usual_split_by(self.data, self.dataset)

    @property
    def data_name(self) -> str:
        """The data set's name in titles."""
        return data_name(self.dataset, self.effective_split_by)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """The job as a results file describes it; jobs with equal descriptions measure the same."""
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
            "split_by": self.effective_split_by,
            "data": str(self.data.resolve()),
            "splits": [*self.splits],
            "image_size": self.image_size,
            "limit": self.limit,
            "batch": self.batch,
            "shuffled_sentences": self.shuffled,
            "convention": self.convention,
        }


def environment(processes: int = 1) -> dict[str, Any]:
    """Versions, CPU and GPU of this machine, and the number of processes that ran at once."""
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


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@dataclass(frozen=True)
class JobPart:
    """What one process does of a job; all processes have the same `done`."""

    job: EvaluationJob
    part: tuple[int, int] = (0, 1)
    """(k, n): this is process k of n."""
    file: ResultsFile | None = None
    done: tuple[Record, ...] = ()
    threads: int | None = None
    """Threads per engine call; None leaves it to the runtime."""
    label: str | None = None
    """Label of a progress bar, before the split's name; None shows none."""
    overlap: bool = True
    """As in `evaluate`."""


def start_job(job: EvaluationJob, results: Path | None, resume: bool, processes: int = 1) -> JobPart:
    """The whole job as one part; creates or continues its results file and raises as `ResultsFile.start`."""
    if results is None:
        return JobPart(job)
    file = ResultsFile(results, job.description, environment(processes))
    return JobPart(job, file=file, done=tuple(file.start(resume=resume)))


@dataclass(frozen=True)
class OpenJob:
    """A job's engines and data sets, opened and checked."""

    engine: Engine
    reference: Engine | None
    datasets: dict[str, ReferDataset]


@contextmanager
def open_job(job: EvaluationJob, threads: int | None = None) -> Iterator[OpenJob]:
    """Open a job's engines and data sets; raises as `open_engine` and `EvaluationJob.datasets`."""
    from tfanet_engines import open_engine

    with ExitStack() as stack:
        engine = stack.enter_context(
            open_engine(job.engine, image_size=job.image_size, trust=job.trust, threads=threads)
        )
        datasets, reference = job.datasets(), None
        if job.reference is not None:
            size = engine.config.image_size
            reference = stack.enter_context(open_engine(job.reference, image_size=size, threads=threads))
        yield OpenJob(engine, reference, datasets)


def run_part(
    opened: OpenJob, part: JobPart, on_progress: Callable[[int], None] | None = None
) -> dict[str, Evaluation]:
    """Evaluate a part of each split, and append its records to the results file; raises as `evaluate`.

    `on_progress` gets the number of expressions of each call when it finishes.
    """
    job, file = part.job, part.file

    def keep(records: Sequence[Record]) -> None:
        if file is not None:
            file.append(records)
        if on_progress is not None:
            on_progress(len(records))

    return {
        split: evaluate(
            opened.engine, dataset, reference=opened.reference, limit=job.limit, batch=job.batch,
            shuffle_expressions=job.shuffled, convention=job.convention,
            progress=part.label and f"{part.label} {split}",
            done=[record for record in part.done if record.split == split],
            sink=keep, part=part.part, overlap=part.overlap,
        )
        for split, dataset in opened.datasets.items()
    }  # fmt: skip


def merge_parts(parts: Sequence[dict[str, Evaluation]], file: ResultsFile | None) -> dict[str, Evaluation]:
    """The evaluations by split of a job whose parts gave `parts`; sorts its results file.

    With a file the records are read back from it, so its readers get the same metrics to the last bit.
    """
    evaluations = {
        split: functools.reduce(Evaluation.merge, (part[split] for part in parts)) for split in parts[0]
    }
    if file is None:
        return evaluations
    records = file.finish()
    return {
        split: dataclasses.replace(evaluation, records=tuple(r for r in records if r.split == split))
        for split, evaluation in evaluations.items()
    }


def run_job(
    job: EvaluationJob, *, results: Path | None = None, resume: bool = False, overlap: bool = True
) -> dict[str, Evaluation]:
    """Evaluate every split in this process; returns the evaluations by split.

    `results` is a file to append every record to as soon as it is measured; `resume` continues that of an
    interrupted run. `overlap` is `evaluate`'s. Raises as `evaluate`, `open_engine` and `ResultsFile.start`.
    """
    with open_job(job) as opened:
        part = start_job(job, results, resume)
        part = dataclasses.replace(part, label=job.data_name, overlap=overlap)
        return merge_parts([run_part(opened, part)], part.file)
