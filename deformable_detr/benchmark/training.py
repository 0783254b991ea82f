"""Cost of a training step: time and memory per setting, and throughput of two processes."""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from deformable_detr import distributed
from deformable_detr.benchmark.memory import peak_extra_megabytes
from deformable_detr.benchmark.summary import paired_ratio, summarize
from deformable_detr.builders import build_criterion, build_model, build_optimizer
from deformable_detr.config.loading import load_config
from deformable_detr.data.collate import Batch
from deformable_detr.engine.memory import return_freed_memory
from deformable_detr.engine.precision import autocast
from deformable_detr.engine.schedule import StepSchedule
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import train_step
from deformable_detr.environment import memory_bytes
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import counted, shown
from deformable_detr.models.backbones.input_channels import input_channels
from deformable_detr.structures import ImageBatch, Target

CONFIG = "deformable_detr_r50"  # six encoder layers and six decoder layers
SETTINGS = {
    "plain": (),
    "gradient checkpointing": ("train.gradient_checkpointing=true",),
    "channels last": ("train.channels_last=true",),
    "bfloat16": ("train.precision=bfloat16",),
}
_SELECTION = ("model.queries.content=learned", "model.queries.ranking=class")
_POSITIONS = ("model.decoder.position=reference",)
_TWICE = ("model.decoder.look_forward_twice=true",)
_DENOISING = ("model.denoising={num_queries: 100}",)
_QUALITY = ("loss.class_loss={kind: quality}", "loss.class_weight=1")
_DINO = (*_SELECTION, *_POSITIONS, *_TWICE, *_DENOISING, *_QUALITY)
DINO_PARTS = {
    "plain": (),
    "query selection": _SELECTION,
    "reference positions": _POSITIONS,
    "look forward twice": _TWICE,
    "denoising": _DENOISING,
    "quality loss": _QUALITY,
    "all parts": _DINO,
    "and 900 queries": (*_DINO, "model.queries.num_queries=900"),
    "and wide layers": (
        *(*_DINO, "model.queries.num_queries=900"),
        *("model.encoder.ffn_dim=2048", "model.decoder.ffn_dim=2048"),
    ),
}
# What is compared: the config, and settings by name.
COMPARISONS = {
    "settings": (CONFIG, SETTINGS),
    "dino": ("deformable_detr_r50_two_stage", DINO_PARTS),
}
OBJECTS = 7  # per image: COCO's mean
NUM_CLASSES = 80
WARM_UP_STEPS = 1
LEAST_BYTES = 200  # per pixel of a batch: the first maps of a small backbone, for the backward pass


@dataclass(frozen=True)
class _Setup:
    """Setup of a benchmark process."""

    overrides: tuple[str, ...]
    size: int
    images: int
    config: str = CONFIG
    rank: int = 0
    world_size: int = 1
    port: int = 0


class _Work:
    """Detector in training, with one batch of noise."""

    def __init__(self, setup: _Setup) -> None:
        config = load_config(setup.config, ["model.backbone.weights=none", *setup.overrides])
        torch.manual_seed(0)
        model = build_model(config, num_classes=NUM_CLASSES).train()
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)
        names = tuple(map(str, range(NUM_CLASSES)))
        self._state = TrainState(
            model,
            build_optimizer(config.train.optimizer, model),
            StepSchedule(drop_steps=1_000_000),
            label_space=LabelSpace(tuple(range(NUM_CLASSES)), names),
            config={},
            precision=config.train.precision,
        )
        self._criterion = build_criterion(config)
        self._batch = _noise(setup.images, input_channels(model), setup.size)

    def forward_and_backward(self) -> None:
        with autocast(self._state.precision, self._state.device):
            output = self._state.model(self._batch.images, self._batch.targets)
        result = self._criterion(output, self._batch.targets)
        result.losses["total"].backward()

    def step(self) -> None:
        train_step(self._state, [self._batch], self._criterion, seed=0, max_grad_norm=0.1)

    def memory(self) -> float | None:
        """Return the peak of a first pass above weights and gradients, in 10^6 bytes."""
        for parameter in self._state.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 0.0)
        return peak_extra_megabytes(self.forward_and_backward, device="cpu")

    def seconds(self, work: Callable[[], None], clock: Callable[[], float]) -> float:
        begin = clock()
        work()
        return clock() - begin


def _noise(images: int, channels: int, size: int) -> Batch:
    batch = ImageBatch(
        torch.randn(images, channels, size, size), torch.zeros(images, size, size, dtype=torch.bool)
    )
    boxes = 0.3 + 0.4 * torch.rand(OBJECTS, 4)
    target = Target(boxes, torch.randint(NUM_CLASSES, (OBJECTS,)))
    return Batch(batch, (target,) * images)


def _serve(connection: Connection, setup: _Setup) -> None:
    """Answer requests by name until an empty one."""
    torch.set_num_threads(1)
    if setup.world_size > 1:
        names = {"RANK": setup.rank, "WORLD_SIZE": setup.world_size, "MASTER_PORT": setup.port}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        distributed.start(torch.device("cpu"))
    try:
        work = _Work(setup)
        requests: dict[str, Callable[[], Any]] = {
            "memory": work.memory,
            # Other programs affect CPU time less than wall-clock time.
            "pass": lambda: work.seconds(work.forward_and_backward, time.process_time),
            "step": lambda: work.seconds(work.step, time.perf_counter),
        }
        while name := connection.recv():
            answer = requests[name]()
            return_freed_memory()  # the other processes need it
            connection.send(answer)
    except (RuntimeError, MemoryError) as error:  # such as too little memory
        connection.send(error)
    finally:
        distributed.stop()


@contextmanager
def _processes(setups: list[_Setup]) -> Iterator[list[Connection]]:
    """Start one process per setup; those without a request take no CPU time."""
    context = get_context("spawn")
    connections, processes = [], []
    for setup in setups:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
        process.start()
        theirs.close()
        connections.append(ours)
        processes.append(process)
    try:
        yield connections
        for connection in connections:
            connection.send("")
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()


def _ask(connections: list[Connection], request: str) -> list[Any]:
    """Send a request to processes that run concurrently, and return their answers."""
    for connection in connections:
        connection.send(request)
    try:
        answers = [connection.recv() for connection in connections]
    except (EOFError, OSError) as error:
        raise RuntimeError(
            "a process of the benchmark has ended, as the system ends one for too little memory; "
            "lower the size and the number of images"
        ) from error
    for answer in answers:
        if isinstance(answer, Exception):
            raise RuntimeError(f"a process of the benchmark has failed: {shown(answer)}")
    return answers


def _require_memory(size: int, images: int) -> None:
    """Raise if the machine has less memory than the first maps of a batch need."""
    memory, needed = memory_bytes(), LEAST_BYTES * images * size * size
    if memory is not None and needed > memory[0]:
        raise ValueError(
            f"size and images must fit into memory, got {counted(images, 'image')} of {size} x "
            f"{size}, which need at least {needed / 1e9:.0f} GB of {memory[0] / 1e9:.0f} GB; lower "
            "them"
        )


def measure_settings(
    *,
    size: int,
    images: int,
    rounds: int,
    overrides: Sequence[str] = (),
    compare: Literal["settings", "dino"] = "settings",
) -> Iterator[str]:
    """Measure time and memory of a forward and backward pass for several settings.

    Each setting has its own process with one thread; they are interleaved.

    Args:
        size: height and width of the images in pixels.
        images: number of images per batch.
        rounds: number of rounds, at least 2, after a warm-up round.
        overrides: KEY=VALUE settings, for a model other than the paper's.
        compare: key of `COMPARISONS`: settings of memory and speed, or the parts of DINO.

    Raises:
        ValueError: the machine has too little memory for the images.
        RuntimeError: a process has failed, as for too little memory.

    Yields:
        Lines to print: CPU time, and peak memory above weights and gradients.
    """
    _require_memory(size, images)
    config, settings = COMPARISONS[compare]
    setups = [_Setup((*overrides, *own), size, images, config) for own in settings.values()]
    with _processes(setups) as connections:
        memory = [_ask([connection], "memory")[0] for connection in connections]
        times: list[list[float]] = [[] for _ in connections]
        for _ in range(WARM_UP_STEPS + rounds):
            for connection, own in zip(connections, times, strict=True):
                own += _ask([connection], "pass")
    measured = [own[WARM_UP_STEPS:] for own in times]
    for name, own, megabytes in zip(settings, measured, memory, strict=True):
        share = paired_ratio(own, measured[0])
        line = f"{name:22} {summarize(own).describe(2)} s, {share.describe(2)} of plain"
        if megabytes is not None:
            line += f"; {megabytes:,.0f} MB, {megabytes / memory[0]:.2f} of plain"
        yield line


def measure_processes(
    *, size: int, images: int, rounds: int, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Measure images per second of one process, and of two in distributed training.

    Each process has one thread.

    Args:
        size: height and width of the images in pixels.
        images: number of images per batch of a process.
        rounds: number of rounds, at least 2, after a warm-up round.
        overrides: KEY=VALUE settings, for a model other than the paper's.

    Raises:
        ValueError: the machine has too little memory for the images.
        RuntimeError: a process has failed, as for too little memory.

    Yields:
        Lines to print, by the wall clock.
    """
    _require_memory(size, images)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    single = _Setup(tuple(overrides), size, images)
    pair = [replace(single, rank=rank, world_size=2, port=port) for rank in range(2)]
    alone_rates, pair_rates = [], []
    with _processes([single, *pair]) as (alone, *together):
        for _ in range(WARM_UP_STEPS + rounds):
            alone_rates.append(images / _ask([alone], "step")[0])
            pair_rates.append(2 * images / max(_ask(together, "step")))
    alone_rates, pair_rates = alone_rates[WARM_UP_STEPS:], pair_rates[WARM_UP_STEPS:]
    yield f"one process    {summarize(alone_rates).describe(3)} images per second"
    yield f"two processes  {summarize(pair_rates).describe(3)} images per second"
    yield f"ratio          {paired_ratio(pair_rates, alone_rates).describe(2)}"
