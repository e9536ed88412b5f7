"""What may be chosen when a plan is built, from recipes and command lines, and which library has what."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from tfanet.errors import UserError
from tfanet.files import require_file
from tfanet.signature import MAX_BATCH
from tfanet_engines.targets import compute_capabilities

Batch = tuple[int, int, int]
HardwareCompat = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE_COMPAT = ("none", "ampere_plus", "same_compute_capability")
OPT_LEVELS = range(6)
RECIPES = "recipes"


@dataclass(frozen=True)
class BuildOptions:
    """Options of `build_plan`; the names are those of `tfanet-export trt`. `UserError` for bad values."""

    target: str = "rtx4090"
    """GPUs by name or sm number, separated by commas; `current` is the GPU of this machine. Full TensorRT
    builds for that one alone."""
    batch: Batch = (1, 1, 8)
    """Smallest, usual and largest batch."""
    hardware_compat: HardwareCompat = "none"
    """Full TensorRT: a plan for the GPU of this machine and others, every later one than the A100
    (`ampere_plus`) or those of the same compute capability."""
    version_compat: bool = False
    """Full TensorRT: a plan that later versions of the same major version open, too."""
    workspace: int | None = None
    """Memory that layers may use for themselves, in MiB; None leaves it to the library."""
    opt_level: int | None = None
    """Full TensorRT: how long the builder searches, 0..5; None leaves it to the library (3)."""
    timing_cache: bool | None = None
    """Full TensorRT: keep the times of kernels in the user's cache folder for the next build. None is yes."""
    plugins: bool | None = None
    """Full TensorRT: run our kernels as plugins; False takes the function bodies. None is yes."""
    tf32: bool = False
    """Let FP32 products lose 13 bits of their mantissa; parity with PyTorch is then out of reach."""

    def __post_init__(self) -> None:
        if self.target != "current":
            compute_capabilities(self.target)
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high <= MAX_BATCH:
            raise UserError(
                f"batch must be 1 <= smallest <= usual <= largest <= {MAX_BATCH}, not {self.batch}"
            )
        if self.hardware_compat not in HARDWARE_COMPAT:
            raise UserError(
                f"hardware compatibility is {' or '.join(HARDWARE_COMPAT)}, not {self.hardware_compat!r}"
            )
        if self.workspace is not None and self.workspace < 1:
            raise UserError(f"workspace is in MiB and must be at least 1, not {self.workspace}")
        if self.opt_level is not None and self.opt_level not in OPT_LEVELS:
            raise UserError(f"the optimisation level is 0 to {OPT_LEVELS[-1]}, not {self.opt_level}")

    def require(self, backend: str) -> None:
        """Raise `UserError` for an option that `backend` lacks, or that contradicts another."""
        if backend == "tensorrt-rtx":
            asked = {
                "hardware-compat": (self.hardware_compat != "none", "give --target a list of GPUs instead"),
                "version-compat": (self.version_compat, "build again for another version"),
                "opt-level": (self.opt_level is not None, "its level changes nothing"),
                "timing-cache": (self.timing_cache is True, "kernels are timed where the plan runs"),
                "plugins": (self.plugins is True, "it runs the function bodies"),
            }
            for name, (given, why) in asked.items():
                if given:
                    raise UserError(f"tensorrt-rtx has no --{name}: {why}")
        elif self.hardware_compat == "ampere_plus" and self.plugins is not False:
            raise UserError(
                "plugins are compiled for one GPU; --hardware-compat ampere_plus goes with --no-plugins"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], backend: str, where: str = "options") -> BuildOptions:
        """Options from a mapping in the manner of TOML: names with hyphens, `batch` a list of three.

        Values of None count as not given. `UserError`, naming `where`, for unknown names and wrong types.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        found: dict[str, Any] = {}
        for name, value in values.items():
            if value is None:
                continue
            key = name.replace("-", "_")
            if key not in known:
                names = ", ".join(field.replace("_", "-") for field in known)
                raise UserError(f"{where} has the unknown option {name!r}; known: {names}")
            if not _fits(key, value):
                raise UserError(f"{where} has {name} = {value!r}, which is no {_KINDS[key]}")
            found[key] = tuple(value) if key == "batch" else value
        options = cls(**found)
        options.require(backend)
        return options


_KINDS = {
    "target": "text", "hardware_compat": "text", "batch": "list of three whole numbers",
    "workspace": "whole number", "opt_level": "whole number", "version_compat": "true or false",
    "timing_cache": "true or false", "plugins": "true or false", "tf32": "true or false",
}  # fmt: skip


def _fits(key: str, value: Any) -> bool:
    match _KINDS[key]:
        case "text":
            return isinstance(value, str)
        case "whole number":
            return type(value) is int
        case "true or false":
            return isinstance(value, bool)
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int for n in value)


def read_recipe(name: str, backend: str) -> dict[str, Any]:
    """The values of a recipe, a file or the name of one of ours, its part for `backend` included.

    Besides the options it may have `fp16`, which is the export's. `UserError` when there is none, or it is
    no TOML.
    """
    ours = {
        entry.name.removesuffix(".toml"): entry
        for entry in files("tfanet_engines").joinpath(RECIPES).iterdir()
    }
    if name in ours:
        text = ours[name].read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = require_file(Path(name), "recipe").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the recipe {name}: {error}") from error
    else:
        raise UserError(f"unknown recipe {name!r}; give a .toml file or one of: {', '.join(sorted(ours))}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name} is no TOML: {error}") from error
    own: dict[str, Any] = {}
    for library in ("tensorrt", "tensorrt-rtx"):
        part = values.pop(library, {})
        if not isinstance(part, dict):
            raise UserError(f"recipe {name}: {library} must be a table, [{library}]")
        if library == backend:
            own = part
    values |= own
    if not isinstance(values.get("fp16", False), bool):
        raise UserError(f"recipe {name} has fp16 = {values['fp16']!r}, which is no true or false")
    return values
