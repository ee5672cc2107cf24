"""Decides which GPUs each worker gets.

`gpus` asks this machine, `want` reads a spec, `assign` decides: a plain function of what there is and what is
wanted. Whether a model fits the accelerator that its spec names is decided by `plan`.
"""

import asyncio
import csv
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine_config import architecture
from engine_config.catalog import model_config
from engine_config.memory import memory
from engine_config.spec import EngineSpec

QUERY = ("--query-gpu=index,uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits")
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, numbered as nvidia-smi does (by bus). Memory in MiB."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    used_mib: int = 0


@dataclass(frozen=True, slots=True)
class Want:
    """What one worker wants: `count` GPUs (none for a CPU worker), and `share` of the memory of each."""

    name: str
    count: int
    share: float


# What a worker is taken to fill where its spec gives the KV cache's bytes and its model's shape is not known.
WHOLE_GPU = 0.9


class NotEnoughGpus(Exception):
    """The workers do not fit on this machine's GPUs; the message names the first that does not, and why."""


async def gpus(visible: str | None) -> tuple[Gpu, ...]:
    """This machine's GPUs; none where there is no working nvidia-smi.

    `visible` is the value of CUDA_VISIBLE_DEVICES, None where it is not set.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    devnull = asyncio.subprocess.DEVNULL
    asking = await asyncio.create_subprocess_exec(
        command, *QUERY, stdin=devnull, stdout=asyncio.subprocess.PIPE, stderr=devnull
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer, _ = await asking.communicate()
    except TimeoutError:
        return ()
    finally:
        if asking.returncode is None:
            asking.kill()
            await asking.wait()
    return chosen(parsed(answer.decode("utf-8", "replace")), visible) if asking.returncode == 0 else ()


def parsed(answer: str) -> tuple[Gpu, ...]:
    """nvidia-smi's answer as values. Memory that it does not tell (`[N/A]`) counts as 0."""
    rows = (row for row in csv.reader(answer.splitlines(), skipinitialspace=True) if len(row) == 5)
    return tuple(Gpu(int(row[0]), row[1], row[2], _mib(row[3]), _mib(row[4])) for row in rows)


def _mib(text: str) -> int:
    return int(text) if text.isdigit() else 0


def chosen(found: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order, up to the first unknown one (as CUDA does)."""
    if visible is None:
        return tuple(found)
    left: list[Gpu] = []
    for word in (word.strip() for word in visible.split(",")):
        match = [gpu for gpu in found if word and (str(gpu.index) == word or gpu.uuid.startswith(word))]
        if len(match) != 1 or match[0] in left:
            break
        left += match
    return tuple(left)


def want(name: str, spec: EngineSpec) -> Want:
    """What a worker of the spec wants."""
    device = spec.accelerator.device
    if not device.is_gpu:
        return Want(name, 0, 0.0)
    share = spec.kv_cache.memory_fraction
    if share is None:
        config = model_config(spec)
        try:
            taken = memory(spec, architecture.read(config), None, None).total if config else None
        except architecture.UnknownArchitecture:
            taken = None
        share = min(1.0, taken / device.memory_bytes) if taken else WHOLE_GPU
    return Want(name, spec.parallelism.accelerators, share)


def assign(found: Sequence[Gpu], wants: Sequence[Want]) -> list[tuple[int, ...]]:
    """GPU indexes for each want, in the order of `wants`. Raises NotEnoughGpus.

    Those that want most are placed first, each on the GPUs with most room, so that workers share a GPU only
    when there are no more GPUs; memory that others use already is not given away.
    """
    room = {gpu.index: 1.0 - (gpu.used_mib / gpu.memory_mib if gpu.memory_mib else 0.0) for gpu in found}
    placed: dict[int, tuple[int, ...]] = {}
    for at in sorted(range(len(wants)), key=lambda at: (-wants[at].count, -wants[at].share, at)):
        wanted = wants[at]
        # Rounded, so that shares of 0.3, 0.6 and 0.1 fill a GPU; stable, so that neighbours stay together.
        fitting = [index for index in room if round(room[index] - wanted.share, 6) >= 0]
        best = sorted(fitting, key=lambda index: -round(room[index], 2))[: wanted.count]
        if len(best) < wanted.count:
            raise NotEnoughGpus(_lack(wanted, found, len(fitting)))
        for index in best:
            room[index] -= wanted.share
        placed[at] = tuple(sorted(best))
    return [placed[at] for at in range(len(wants))]


def _lack(wanted: Want, found: Iterable[Gpu], fitting: int) -> str:
    there = [f"{gpu.index} ({gpu.name}, {gpu.used_mib} of {gpu.memory_mib} MiB used)" for gpu in found]
    what = f"{wanted.name} wants {wanted.share:.0%} of {wanted.count} GPU{'s' if wanted.count > 1 else ''}"
    if not there:
        return f"{what}, and this machine has none that nvidia-smi shows"
    return f"{what}, and there is room on {fitting or 'none'} of these: {', '.join(there)}"
