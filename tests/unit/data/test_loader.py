import ctypes
import gc
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import deformable_detr
from deformable_detr.data import loader as loader_module
from deformable_detr.data import watched
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.collate import Batch, collate
from deformable_detr.data.loader import build_evaluation_loader, build_loader
from deformable_detr.data.samplers import BatchPlan, MicroBatchSampler, SampleKey
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.transforms import (
    ColorJitter,
    Compose,
    RandomHorizontalFlip,
    RandomResize,
    RandomZoomCrop,
    Resize,
)
from deformable_detr.data.watched import SampleError
from deformable_detr.structures import Target

AUGMENTATION = Compose((RandomHorizontalFlip(), RandomResize((32, 40)), ColorJitter(0.2)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_coco_set(tmp_path_factory.mktemp("set"), num_images=8, size=(48, 64), empty=(2,))


def open_set(files, *, seed=0, transform=AUGMENTATION, **options):
    source = CocoDataset(files.images, files.annotations)
    return TransformedDataset(source, transform, seed=seed, **options)


def sampler_for(dataset, rank=0, world_size=1):
    plan = BatchPlan(total_batch=4, micro_batch=1, rank=rank, world_size=world_size)
    return MicroBatchSampler(len(dataset), plan, seed=0)


def loader_for(dataset, sampler, *, num_workers=0, start_method="fork", **options):
    loader = build_loader(dataset, sampler, num_workers=num_workers, pin_memory=False, **options)
    if num_workers:
        loader.multiprocessing_context = start_method
    return loader


def load(dataset, rank=0, world_size=1, epoch=0, **options):
    sampler = sampler_for(dataset, rank, world_size)
    sampler.set_epoch(epoch)
    return list(loader_for(dataset, sampler, **options))


def is_same(first, second):
    return (
        first.images.images.equal(second.images.images)
        and first.images.padding_mask.equal(second.images.padding_mask)
        and all(
            a.boxes.equal(b.boxes) and a.labels.equal(b.labels) and a.image_id == b.image_id
            for a, b in zip(first.targets, second.targets, strict=True)
        )
    )


def assert_same(first, second):
    assert len(first) == len(second) > 0
    assert all(map(is_same, first, second))


@pytest.mark.parametrize("world_size", [2, 4])
def test_batches_and_augmentation_are_the_same_for_any_world_size(files, world_size):
    dataset = open_set(files)
    ranks = [load(dataset, rank, world_size, epoch=1) for rank in range(world_size)]
    together = [batch for turn in zip(*ranks, strict=True) for batch in turn]
    assert_same(together, load(dataset, epoch=1))


@pytest.fixture(scope="module")
def spawned(files):
    """Return a loader with a spawned worker, which takes seconds to start, and its sampler."""
    dataset = open_set(files)
    sampler = sampler_for(dataset)
    return loader_for(dataset, sampler, num_workers=1, start_method="spawn"), sampler


def test_batches_of_a_spawned_worker_equal_those_without_workers(files, spawned):
    loader, sampler = spawned
    sampler.set_epoch(2)
    assert_same(list(loader), load(open_set(files), epoch=2))


def test_persistent_worker_uses_the_next_epoch(files, spawned):
    loader, sampler = spawned
    sampler.set_epoch(3)
    list(loader)
    sampler.set_epoch(4)
    sampler.start_at(1)
    assert_same(list(loader), load(open_set(files), epoch=4)[4:])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_names_an_unreadable_image_in_one_line(files, num_workers):
    dataset = open_set(files)
    path = files.images / "0002.png"
    content = path.read_bytes()
    path.write_text("gone bad")
    try:
        with pytest.raises(SampleError) as caught:
            load(dataset, num_workers=num_workers)
    finally:
        path.write_bytes(content)
    expected = rf"image 2 \({path}\): {path} must be a readable image, got: [^\n]*"
    assert re.fullmatch(expected, str(caught.value))


class Sabotage:
    """Transform that harms its own process at one image."""

    def __init__(self, image_id, harm):
        self.image_id = image_id
        self.harm = harm

    def __call__(self, sample, generator):
        if sample.image_id == self.image_id:
            match self.harm:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "crash":
                    ctypes.string_at(0)
                case "hang":
                    time.sleep(60)
        return sample


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("harm", ["kill", "crash", "hang"])
def test_error_names_the_image_of_a_worker_that_dies_or_hangs(files, harm):
    dataset = open_set(files, transform=Sabotage(5, harm))
    options = {"timeout_s": 2} if harm == "hang" else {}
    with pytest.raises(SampleError) as caught:
        load(dataset, num_workers=1, **options)
    message = str(caught.value)
    del caught
    with warnings.catch_warnings():  # multiprocessing leaves a socket to a dead process open
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    expected = f"a data-loader worker failed while loading image 5 ({files.images / '0005.png'}): "
    assert message.startswith(expected)
    # The death of a worker reaches the loader as a signal, or as a queue that stays empty.
    reasons = {
        "kill": "killed by signal: Killed|exited unexpectedly",
        "crash": "killed by signal: Segmentation fault|exited unexpectedly",
        "hang": "timed out after 2 seconds",
    }
    assert re.search(reasons[harm], message)


WITHOUT_ROOM = """
import resource
import sys
from pathlib import Path

from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_evaluation_loader
from deformable_detr.data.transforms import Resize
from deformable_detr.data.watched import SampleError

dataset = CocoDataset(Path(sys.argv[1]), Path(sys.argv[2]))
options = {"batch_size": 2, "num_workers": 1, "pin_memory": False}
loader = build_evaluation_loader(dataset, Resize(32, 40), **options)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # shared memory is a file too
try:
    next(iter(loader))
except SampleError as error:
    sys.exit(f"error: {error}")
"""


def test_a_batch_without_room_in_shared_memory_is_an_error(files):
    """It would be dropped, and waited for forever."""
    command = [sys.executable, "-c", WITHOUT_ROOM, files.images, files.annotations]
    environment = {**os.environ, "PYTHONPATH": str(Path(deformable_detr.__file__).parents[1])}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert re.fullmatch(r"error: a batch has no room in shared memory \(.*\).*\n", ended.stderr)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_worker_that_dies_while_the_main_process_computes_is_named_at_the_next_batch(files):
    sampler = sampler_for(open_set(files), 0, 1)
    third = list(sampler)[2][0].index  # prefetched when the first has arrived
    dataset = open_set(files, transform=Sabotage(third + 1, "kill"))
    batches = iter(loader_for(dataset, sampler, num_workers=1))
    next(batches)
    end = time.monotonic() + 10
    while watched._DEATHS._error is None:
        sum(range(1000))  # where PyTorch's error would come
        assert time.monotonic() < end
    named = rf"while loading image {third + 1} .*killed by signal: Killed"
    with pytest.raises(SampleError, match=named):
        list(batches)
    assert watched._DEATHS._error is None


class Interrupt:
    """Transform that interrupts its own process, as a terminal does all of a command."""

    def __call__(self, sample, generator):
        os.kill(os.getpid(), signal.SIGINT)
        return sample


def interrupt_at_once(worker, ignore=loader_module._ignore_signals):
    os.kill(os.getpid(), signal.SIGINT)
    ignore(worker)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_ignore_ctrl_c_from_their_start(files, monkeypatch, capfd):
    monkeypatch.setattr(loader_module, "_ignore_signals", interrupt_at_once)
    dataset = open_set(files, transform=Interrupt())
    assert len(load(dataset, num_workers=1)) == 8
    assert capfd.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt):  # this process does not ignore it
        os.kill(os.getpid(), signal.SIGINT)


FAILING = """
import sys
from pathlib import Path

from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.loader import build_evaluation_loader
from deformable_detr.data.transforms import Resize

dataset = CocoDataset(Path(sys.argv[1]), Path(sys.argv[2]))
options = {"batch_size": 1, "num_workers": 1, "pin_memory": False}
loader = build_evaluation_loader(dataset, Resize(32, 40), **options)
next(iter(loader))
sys.exit(2)
"""


def test_a_command_that_fails_does_not_wait_for_its_workers(files):
    """What refers to the loader may keep it alive at the exit; SIGTERM would not end workers."""
    command = [sys.executable, "-c", FAILING, files.images, files.annotations]
    environment = {**os.environ, "PYTHONPATH": str(Path(deformable_detr.__file__).parents[1])}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError()])
def test_a_lost_connection_to_a_worker_names_its_image(files, monkeypatch, error):
    """A batch may be fetched from a worker that has just died."""

    def fetch(_):
        raise error

    loader = loader_for(open_set(files), sampler_for(open_set(files)), num_workers=1)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", fetch)
    with pytest.raises(SampleError, match=r"worker failed .*: the worker exited unexpectedly \("):
        list(loader)


def test_augmentation_depends_on_seed_epoch_and_index(files):
    crop = RandomZoomCrop(16)

    def pixels(seed, epoch, index):
        image, _ = open_set(files, seed=seed, transform=crop)[SampleKey(epoch, index)]
        return image

    assert pixels(0, 0, 0).equal(pixels(0, 0, 0))
    assert not pixels(0, 0, 0).equal(pixels(1, 0, 0))
    assert not pixels(0, 0, 0).equal(pixels(0, 1, 0))
    assert not pixels(0, 0, 0).equal(pixels(0, 0, 1))


def test_repeats_are_augmented_differently(files):
    dataset = open_set(files, transform=RandomZoomCrop(16), repeats=3)
    assert len(dataset) == 24
    (first, target), (again, same_target) = dataset[SampleKey(0, 1)], dataset[SampleKey(0, 9)]
    assert target.image_id == same_target.image_id == 2
    assert not first.equal(again)


def test_zero_repeats_are_rejected(files):
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        open_set(files, repeats=0)


def test_evaluation_batches_hold_every_image_and_are_not_padded(tmp_path):
    sizes = [(48, 64), (64, 48), (96, 128), (40, 64), (47, 64)]  # two are resized to one size
    files = write_coco_set(tmp_path, num_images=7, sizes=sizes)
    dataset = CocoDataset(files.images, files.annotations)
    transform = Resize(32, 40)
    batches = list(
        build_evaluation_loader(dataset, transform, batch_size=2, num_workers=0, pin_memory=False)
    )
    ids = [[target.image_id for target in batch.targets] for batch in batches]
    assert ids == [[1, 3], [2, 7], [4], [5], [6]]
    assert not any(batch.images.padding_mask.any() for batch in batches)


def make_batch():
    targets = [
        Target(torch.rand(count, 4), torch.zeros(count, dtype=torch.int64), image_id, (9, 9))
        for image_id, count in enumerate((2, 0))
    ]
    return collate([(torch.ones(3, 4, 6), targets[0]), (torch.ones(3, 5, 2), targets[1])])


def test_collate_pads_at_the_right_and_the_bottom():
    batch = make_batch()
    assert batch.images.images.shape == (2, 3, 5, 6)
    assert batch.images.padding_mask[0].tolist() == [[False] * 6] * 4 + [[True] * 6]
    assert not batch.images.images[0, :, 4].any()
    assert batch.images.padding_mask[1].tolist() == [[False] * 2 + [True] * 4] * 5
    assert [len(target) for target in batch.targets] == [2, 0]


def test_batch_moves_images_and_targets():
    moved = make_batch().to("meta")
    assert isinstance(moved, Batch)
    assert moved.images.images.is_meta
    assert moved.images.padding_mask.is_meta
    assert all(target.boxes.is_meta and target.labels.is_meta for target in moved.targets)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_loader_pins_batches(files):
    batch = load(open_set(files), pin_memory=True)[0]
    assert batch.images.images.is_pinned()
    assert all(target.boxes.is_pinned() for target in batch.targets)


SIDES = [(40, 80), (90, 30)]


def sized(*sides):
    targets = [Target(torch.tensor([[0.5, 0.5, 0.2, 0.4]]), torch.tensor([1]))] * len(sides)
    return [(torch.rand(3, *size), target) for size, target in zip(sides, targets, strict=True)]


@pytest.mark.parametrize("limit", [14399, 7000, 600])
def test_batch_with_too_many_pixels_is_shrunk_below_the_limit_by_one_factor(limit):
    images = collate(sized(*SIDES), max_padded_pixels=limit).images
    N, _, H, W = images.images.shape
    pixels, with_one_more = N * H * W, N * (H + 1) * (W + 1)
    assert pixels <= limit < with_one_more
    valid = ~images.padding_mask
    for (height, width), mask in zip(SIDES, valid, strict=True):
        factor = (limit / (2 * 90 * 80)) ** 0.5
        assert mask[:, 0].sum() == int(factor * height)
        assert mask[0].sum() == int(factor * width)


def test_shrunk_image_keeps_its_content_and_relative_boxes():
    (image, target), other = sized(*SIDES)
    rows = torch.linspace(0, 1, 40)[:, None].expand(40, 80)
    samples = [(image.copy_(rows), target), other]
    batch = collate(samples, max_padded_pixels=3600)  # half of each side
    halved = rows.unflatten(0, (20, 2)).mean(1)[:, :40]
    shown = batch.images.images[0, 0, :20, :40]
    assert (shown - halved)[1:-1].abs().max() < 1e-6
    assert batch.targets[0] is target


def test_batch_within_the_limit_is_unchanged():
    samples = sized(*SIDES)
    assert is_same(collate(samples, max_padded_pixels=2 * 90 * 80), collate(samples))


def test_loader_applies_the_limit(files):
    shapes = {tuple(batch.images.images.shape) for batch in load(open_set(files))}
    assert max(height * width for _, _, height, width in shapes) > 1200
    for batch in load(open_set(files), max_padded_pixels=1200):
        N, _, H, W = batch.images.images.shape
        assert 1000 < N * H * W <= 1200


def test_a_worker_is_silent_about_a_reader_that_has_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its thread that hands out tensors calls the hook, also when the main process is ended."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    loader_module._ignore_signals(0)
    for error in (ConnectionResetError(104, "Connection reset by peer"), EOFError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(KeyError, KeyError("x"), None)
    assert capsys.readouterr().err == "KeyError: 'x'\n"
