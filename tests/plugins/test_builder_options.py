"""The calls for every build option in TensorRT 10 and 11, checked against NVIDIA's names and signatures."""

from __future__ import annotations

from typing import Any

import pytest
from small_engines import write_onnx

from tfanet_engines.builder import MIB

pytestmark = pytest.mark.integration

VERSIONS = ["11.4.0.106", "10.16.1.11", pytest.param("10.9.0.34", marks=pytest.mark.slow)]
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "batch": {"batch": [2, 3, 4]},
    "workspace": {"workspace": 512},
    "opt level": {"opt_level": 5},
    "version": {"version_compat": True},
    "ampere_plus": {"hardware_compat": "ampere_plus", "plugins": False},
    "same": {"hardware_compat": "same_compute_capability", "plugins": False},
    "no timing cache": {"timing_cache": False},
    "tf32": {"tf32": True},
}


@pytest.fixture(scope="module", params=VERSIONS)
def recorded(request, ask_tensorrt, tmp_path_factory) -> dict[str, Any]:
    """The calls for each of `OPTIONS`, and (`plugins`) for a build with plugins whose engine opens."""
    onnx = write_onnx(tmp_path_factory.mktemp("onnx") / "small.onnx")
    common = {"onnx": str(onnx), "opens": False, "plugins": []}
    builds = [common | {"options": options} for options in OPTIONS.values()]
    builds.append(common | {"options": {}, "plugins": ["one", "two"], "opens": True})
    cache = str(tmp_path_factory.mktemp("cache"))
    answer = ask_tensorrt(
        request.param, {"builds": builds}, job="record_builds", environment={"XDG_CACHE_HOME": cache}
    )
    return dict(zip([*OPTIONS, "plugins"], answer["builds"], strict=True))


def calls(build: dict[str, Any], name: str) -> list[list[Any]]:
    return [arguments for called, *arguments in build["log"] if called == name]


def test_the_plan_is_the_result_of_the_builder(recorded):
    assert {build["plan"] for build in recorded.values()} == {"a plan"}


def test_the_network_is_strongly_typed(recorded):
    for build in recorded.values():
        assert calls(build, "create_network") == [[build["typed"]]]


def test_tf32_is_off_by_default(recorded):
    for name, build in recorded.items():
        on, off = (["TF32"] in calls(build, flag) for flag in ("set_flag", "clear_flag"))
        assert (on, off) == ((True, False) if name == "tf32" else (False, True))


def test_the_profile_has_the_batches(recorded):
    for name, build in recorded.items():
        (image, tokens) = calls(build, "set_shape")
        assert (image[0], tokens[0], len(image), len(tokens)) == ("image", "tokens", 4, 4), name
        assert len(calls(build, "add_optimization_profile")) == 1
        sizes = [2, 3, 4] if name == "batch" else [1, 1, 8]
        assert image[1:] == [[size, 32, 32, 3] for size in sizes]
        assert tokens[1:] == [[size, 5] for size in sizes]


def test_each_option_has_exactly_its_own_call(recorded):
    limits = {name: calls(build, "set_memory_pool_limit") for name, build in recorded.items()}
    assert limits.pop("workspace") == [["WORKSPACE", 512 * MIB]]
    levels = {name: calls(build, "builder_optimization_level") for name, build in recorded.items()}
    assert levels.pop("opt level") == [[5]]
    versions = {name: ["VERSION_COMPATIBLE"] in calls(build, "set_flag") for name, build in recorded.items()}
    assert versions.pop("version")
    hardware = {name: calls(build, "hardware_compatibility_level") for name, build in recorded.items()}
    assert hardware.pop("ampere_plus") == [["AMPERE_PLUS"]]
    assert hardware.pop("same") == [["SAME_COMPUTE_CAPABILITY"]]
    for others in (limits, levels, versions, hardware):
        assert not any(others.values())


def test_the_timing_cache_is_used_by_default(recorded):
    assert not calls(recorded["no timing cache"], "create_timing_cache")
    assert not calls(recorded["no timing cache"], "get_timing_cache")
    for name in ("usual", "plugins"):
        assert len(calls(recorded[name], "set_timing_cache")) == 1
        assert len(calls(recorded[name], "serialize")) == 1


def test_plugins_are_parsed_from_memory_and_function_bodies_from_the_file(recorded):
    for name, build in recorded.items():
        assert bool(calls(build, "parse")) == (name == "plugins")
        assert bool(calls(build, "parse_from_file")) == (name != "plugins")


def test_the_engine_is_inspected_if_it_opens(recorded):
    assert {name for name, build in recorded.items() if build["inspected"]} == {"plugins"}
    assert calls(recorded["plugins"], "get_engine_information") == [["JSON"]]
    for build in recorded.values():
        assert calls(build, "profiling_verbosity") == [["DETAILED"]]
