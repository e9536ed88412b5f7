"""One engine over the splits of one data set, as a command asks for it."""

from __future__ import annotations

import dataclasses
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfanet_eval.accuracy import Evaluation, evaluate
from tfanet_eval.results import Record, ResultsFile

if TYPE_CHECKING:
    from tfanet.data.refer import ReferDataset

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

    def datasets(self) -> dict[str, ReferDataset]:
        """By split; `UserError` when one is missing or damaged."""
        from tfanet.data.refer import ReferDataset

        return {split: ReferDataset(self.data, self.dataset, split) for split in self.splits}

    def describe(self) -> dict[str, Any]:
        """What a results file says of the run; two runs that agree in it measure the same."""
        from tfanet_engines.sidecar import model_sha256
        from tfanet_eval.references import precision_of

        reference = self.reference
        return {
            "engine": self.engine.name,
            "engine_sha256": model_sha256(self.engine),
            "precision": precision_of(self.engine),
            "reference": reference.name if reference else None,
            "reference_sha256": model_sha256(reference) if reference else None,
            "dataset": self.dataset,
            "data": str(self.data.resolve()),
            "splits": [*self.splits],
            "image_size": self.image_size,
            "limit": self.limit,
            "batch": self.batch,
            "shuffled_sentences": self.shuffled,
            "convention": self.convention,
        }


def environment() -> dict[str, Any]:
    """This machine and the versions that computed on it."""
    import torch

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"versions": {"python": platform.python_version(), **versions}, "cpu": _cpu(), "gpu": gpu}


def run_splits(
    request: Request, *, results: Path | None = None, resume: bool = False, overlap: bool = True
) -> dict[str, Evaluation]:
    """The evaluation of each split.

    With `results` every expression is noted there as soon as it is measured; `resume` goes on with what a
    run that was interrupted left there. `overlap` is `evaluate`'s. Raises as `evaluate`, `open_engine` and
    `ResultsFile.start`.
    """
    from tfanet_engines import open_engine

    with ExitStack() as stack:
        engine = stack.enter_context(
            open_engine(request.engine, image_size=request.image_size, trust=request.trust)
        )
        datasets = request.datasets()
        size = engine.config.image_size
        against = request.reference
        reference = stack.enter_context(open_engine(against, image_size=size)) if against else None
        file, done = None, []
        if results is not None:
            file = ResultsFile(results, request.describe(), environment())
            done = file.start(resume=resume)
        found = {
            split: evaluate(
                engine, dataset, reference=reference, limit=request.limit, batch=request.batch,
                shuffle_sentences=request.shuffled, convention=request.convention,
                progress=f"{request.dataset} {split}",
                done=[record for record in done if record.split == split],
                sink=file.append if file else None, overlap=overlap,
            )
            for split, dataset in datasets.items()
        }  # fmt: skip
        return found if file is None else _from_file(found, file.finish())


def _from_file(found: dict[str, Evaluation], records: list[Record]) -> dict[str, Evaluation]:
    """The evaluations as the file has them: whoever reads it gets the same figures to the last bit."""
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
