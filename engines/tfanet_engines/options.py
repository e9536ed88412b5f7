"""Options of a build, from recipes and command lines, and which library supports which."""

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
from tfanet.validation import from_values
from tfanet_engines.targets import compute_capabilities

Batch = tuple[int, int, int]
HardwareCompat = Literal["none", "ampere_plus", "same_compute_capability"]
HARDWARE_COMPAT = ("none", "ampere_plus", "same_compute_capability")
OPT_LEVELS = range(6)
RECIPES = "recipes"


@dataclass(frozen=True)
class BuildOptions:
    """Options of `build_plan`, named as in `tfanet-export trt`. Raises `UserError` for invalid values."""

    target: str = "rtx4090"
    """GPUs by name or sm number, separated by commas; `current` is the GPU of this machine, the only one
    that full TensorRT builds for."""
    batch: Batch = (1, 1, 8)
    """Smallest, optimal and largest batch."""
    hardware_compat: HardwareCompat = "none"
    """Full TensorRT: which other GPUs the plan runs on: Ampere and later (`ampere_plus`), or those of the
    same compute capability."""
    version_compat: bool = False
    """Full TensorRT: later versions of the same major version can open the plan, too."""
    workspace: int | None = None
    """Workspace memory of a layer, in MiB; None leaves it to the library."""
    opt_level: int | None = None
    """Full TensorRT: builder optimisation level, 0..5; None leaves it to the library (3)."""
    timing_cache: bool | None = None
    """Full TensorRT: keep kernel timings in the user's cache folder for the next build. None means yes."""
    plugins: bool | None = None
    """Full TensorRT: run our kernels as plugins; False uses the function bodies. None means yes."""
    tf32: bool = False
    """Allow TF32, which rounds 13 bits off the mantissa of FP32 factors; FP32 parity then fails."""

    def __post_init__(self) -> None:
        if self.target != "current":
            compute_capabilities(self.target)
        low, optimal, high = self.batch
        if not 1 <= low <= optimal <= high <= MAX_BATCH:
            raise UserError(
                f"batch must be 1 <= smallest <= optimal <= largest <= {MAX_BATCH}, not {self.batch}"
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
        """Raise `UserError` for an option that `backend` does not support, or that contradicts another."""
        if backend == "tensorrt-rtx":
            unsupported = {
                "hardware-compat": (self.hardware_compat != "none", "give --target a list of GPUs instead"),
                "version-compat": (self.version_compat, "build again for another version"),
                "opt-level": (self.opt_level is not None, "its level changes nothing"),
                "timing-cache": (self.timing_cache is True, "kernels are timed where the plan runs"),
                "plugins": (self.plugins is True, "it runs the function bodies"),
            }
            for name, (given, why) in unsupported.items():
                if given:
                    raise UserError(f"tensorrt-rtx has no --{name}: {why}")
        elif self.hardware_compat == "ampere_plus" and self.plugins is not False:
            raise UserError(
                "plugins are compiled for one GPU; --hardware-compat ampere_plus goes with --no-plugins"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], backend: str, where: str = "options") -> BuildOptions:
        """Options from a mapping with names as in a recipe, `opt-level` for one; None counts as not given.

        Raises `UserError`, which names `where`, for unknown names and wrong types.
        """
        given = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in given if name not in known]:
            names = ", ".join(name.replace("_", "-") for name in known)
            raise UserError(f"{where} has the unknown option {unknown[0]!r}; known: {names}")
        options = from_values(cls, given, where)
        options.require(backend)
        return options


def read_recipe(name: str, backend: str) -> dict[str, Any]:
    """The values of a recipe, a .toml file or a bundled name, including its table for `backend`.

    Besides build options it may have `fp16`, an export option. Raises `UserError` if the recipe is missing,
    not TOML, or has values of the wrong type.
    """
    bundled = {
        entry.name.removesuffix(".toml"): entry
        for entry in files("tfanet_engines").joinpath(RECIPES).iterdir()
    }
    if name in bundled:
        text = bundled[name].read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = require_file(Path(name), "recipe").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the recipe {name}: {error}") from error
    else:
        raise UserError(f"unknown recipe {name!r}; give a .toml file or one of: {', '.join(sorted(bundled))}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {name} is not valid TOML: {error}") from error
    selected: dict[str, Any] = {}
    for library in ("tensorrt", "tensorrt-rtx"):
        part = values.pop(library, {})
        if not isinstance(part, dict):
            raise UserError(f"recipe {name}: {library} must be a table, [{library}]")
        if library == backend:
            selected = part
    values |= selected
    if not isinstance(values.get("fp16", False), bool):
        raise UserError(f"recipe {name} has fp16 = {values['fp16']!r}, which is not true or false")
    return values
