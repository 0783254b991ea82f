"""Measure time and memory of a data set of the size of COCO train2017 (118,287 images).

The annotation file, 860,001 boxes with polygons in about 290 MB of JSON, is generated once, from a
fixed seed. Three measurements follow, each in fresh processes:

* seconds to read and check the annotations, and the highest resident memory meanwhile;
* resident memory that stays after reading, more than before it;
* memory of two processes with two data workers each, in three passes over the data set: the private
  and the shared memory of all six, each shared page counted once (PSS).

The images are links to one file; both processes check all of them at their start. Workers return
the annotations of each image and a blank image instead of decoding it, so that the memory is that
of the data set.

Usage: python scripts/check_large_data.py [--out FOLDER] [--images N] [--boxes N]

The exit code is 1 if a limit is exceeded; the limits are those of the full size. Takes several
minutes and 0.3 GB of disk. Linux only.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from deformable_detr.data.annotations import read_annotations
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.samplers import BatchPlan, MicroBatchSampler, SampleKey

IMAGES, BOXES = 118_287, 860_001
SIZE = 480, 640  # height and width of all images
POLYGON_POINTS = 12
MAX_READ_S = 12.0
MAX_KEPT_MB = 250.0
MAX_GROWTH = 5.0  # percent, of the last pass over the first
PROCESSES, WORKERS, PASSES, BATCH = 2, 2, 3, 64
START_METHOD = "spawn"  # as a launcher starts processes
MB = 1e6


def write_annotations(file: Path, *, images: int, boxes: int) -> None:
    """Write a seeded annotation file piece by piece."""
    height, width = SIZE
    random = np.random.default_rng(0)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        for number in range(images):
            entry = {"id": 3 * number, "file_name": name_of(number), "height": height}
            out.write((", " if number else "") + json.dumps({**entry, "width": width}))
        out.write('], "annotations": [')
        shapes = [_polygon(random) for _ in range(1_000)]  # drawn once, as it takes the time
        columns = zip(
            random.integers(0, (width // 2, height // 2), (boxes, 2)).tolist(),
            random.uniform(4, 200, (boxes, 2)).round(2).tolist(),
            (3 * random.integers(images, size=boxes)).tolist(),
            random.integers(1, 81, boxes).tolist(),
            strict=True,
        )
        for number, ((x, y), (w, h), image_id, category_id) in enumerate(columns):
            out.write(
                f'{", " if number else ""}{{"segmentation": {shapes[number % 1_000]}, '
                f'"area": {w * h / 2:.4f}, "iscrowd": {int(number % 100 == 0)}, '
                f'"image_id": {image_id}, "bbox": [{x}, {y}, {w}, {h}], '
                f'"category_id": {category_id}, "id": {10 * number + 1}}}'
            )
        out.write("]}")
    partial.replace(file)


def _polygon(random: np.random.Generator) -> str:
    return json.dumps([random.uniform(0, 400, 2 * POLYGON_POINTS).round(2).tolist()])


def name_of(number: int) -> str:
    """Return the file name of an image."""
    return f"{number:012d}.png"


def link_images(folder: Path, *, images: int) -> None:
    """Make a link to one image file per name."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "image"
    if not source.exists():
        Image.new("RGB", SIZE[::-1]).save(source, "PNG")
    for number in range(images):
        link = folder / name_of(number)
        if not link.exists():
            link.symlink_to(source.name)


def memory_mb(key: str, pid: int | str = "self", table: str = "smaps_rollup") -> float:
    """Return an entry of a memory table of a process in MB."""
    lines = Path(f"/proc/{pid}/{table}").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{key}:")]
    return 1024 * float(line.split()[1]) / MB


def measure_reading(file: Path) -> tuple[float, float, float]:
    """Return seconds to read a file, MB kept after it, and the highest MB meanwhile."""
    gc.collect()
    before = memory_mb("Rss")
    start = time.perf_counter()
    annotations = read_annotations(file)
    seconds = time.perf_counter() - start
    gc.collect()
    kept = memory_mb("Rss") - before
    peak = memory_mb("VmHWM", table="status") - before
    assert len(annotations.images) > 0  # it is alive
    return seconds, kept, peak


class Blank(Dataset[int]):
    """The annotations of a data set's images; the image is blank instead of decoded."""

    def __init__(self, source: CocoDataset) -> None:
        self._source = source
        self._image = Image.new("RGB", SIZE[::-1])
        source._image = lambda index: self._image  # type: ignore[method-assign]

    def __getitem__(self, key: SampleKey) -> int:
        sample = self._source[key.index]
        self._source.describe(key.index)
        return len(sample.labels)


def run_passes(folder: Path, rank: int, ready: Barrier, seen: Barrier) -> Iterator[float]:
    """Iterate over the data set with workers; yield the MB of this process and its workers."""
    dataset = CocoDataset(folder / "images", folder / "annotations.json")
    plan = BatchPlan(total_batch=BATCH, micro_batch=BATCH // 2, rank=rank, world_size=PROCESSES)
    sampler = MicroBatchSampler(len(dataset), plan, seed=0)
    loader = DataLoader(
        Blank(dataset),
        batch_sampler=sampler,  # type: ignore[arg-type]  # of keys, not of numbers
        num_workers=WORKERS,
        collate_fn=sum,
        persistent_workers=True,
        multiprocessing_context="fork",  # as a process has it that no other one has spawned
    )
    for epoch in range(PASSES):
        sampler.set_epoch(epoch)
        assert sum(loader) > 0
        ready.wait()
        children = [child.pid for child in multiprocessing.active_children()]
        total = sum(memory_mb("Pss", pid) for pid in (os.getpid(), *children) if pid is not None)
        seen.wait()  # pages are shared by the number of processes that live
        yield total


def send_passes(
    folder: Path, rank: int, ready: Barrier, seen: Barrier, found: "Connection[list[float], None]"
) -> None:
    """Send what `run_passes` yields, as the main function of a process."""
    torch.set_num_threads(1)
    found.send(list(run_passes(folder, rank, ready, seen)))


def measure_passes(folder: Path) -> list[float]:
    """Return the MB of all processes after each pass; ChildProcessError if a process fails."""
    context = multiprocessing.get_context(START_METHOD)
    ready, seen = context.Barrier(PROCESSES), context.Barrier(PROCESSES)
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    processes = [
        context.Process(target=send_passes, args=(folder, rank, ready, seen, sender))
        for rank, (_, sender) in enumerate(pipes)
    ]
    try:
        for process in processes:
            process.start()
        waiting = {process.sentinel: process for process in processes}
        while waiting:
            for sentinel in wait(list(waiting)):
                process = waiting.pop(sentinel)  # type: ignore[call-overload]  # not a socket
                process.join()
                if process.exitcode != 0:
                    raise ChildProcessError(f"a process failed: exit code {process.exitcode}")
    finally:
        for process in processes:  # one may wait for another that has failed
            if process.is_alive():
                process.terminate()
    totals = np.sum([receiver.recv() for receiver, _ in pipes], axis=0)
    return list(totals.tolist())


def is_within_limits(seconds: float, kept: float, passes: Sequence[float]) -> bool:
    """Print the figures beside their limits; return whether none is exceeded."""
    rows = [
        ("reading, s", seconds, MAX_READ_S),
        ("memory kept, MB", kept, MAX_KEPT_MB),
        ("growth from first to last pass, %", 100 * (passes[-1] / passes[0] - 1), MAX_GROWTH),
    ]
    for name, value, limit in rows:
        verdict = "ok" if value <= limit else "EXCEEDED"
        print(f"{name:34} {value:8.1f}   limit {limit:g}   {verdict}")
    return all(value <= limit for _, value, limit in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--out", type=Path, default=Path("large_data"), help="folder of the data set"
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--boxes", type=int, default=BOXES)
    args = parser.parse_args(arguments)
    folder = args.out / f"{args.images}_{args.boxes}"
    file = folder / "annotations.json"
    link_images(folder / "images", images=args.images)
    if not file.is_file():
        write_annotations(file, images=args.images, boxes=args.boxes)
    print(f"{args.images} images, {args.boxes} boxes, {file.stat().st_size / MB:.0f} MB of JSON")

    with ProcessPoolExecutor(1, multiprocessing.get_context(START_METHOD)) as fresh:
        seconds, kept, peak = fresh.submit(measure_reading, file).result()
    print(f"highest memory while reading: {peak:.0f} MB")
    passes = measure_passes(folder)
    totals = ", ".join(f"{one:.0f}" for one in passes)
    print(f"memory of all processes after each pass, MB: {totals}")
    return int(not is_within_limits(seconds, kept, passes))


if __name__ == "__main__":
    sys.exit(main())
