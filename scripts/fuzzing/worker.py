"""Process that imports the package once, then tries one input after another.

Reads a JSON line per input from stdin, and writes one with the outcome to stdout.
"""

import json
import logging
import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deformable_detr import Detector, evaluate, load_config, predict, train
from deformable_detr.config.loading import to_yaml
from deformable_detr.data.annotations import read_annotations
from deformable_detr.data.coco import CocoDataset
from deformable_detr.evaluation.coco_eval import evaluate_results
from deformable_detr.ground_truth import read_ground_truth
from deformable_detr.photos import as_photo, read_photo
from fuzzing.sound import PHOTO_SIZE, Sound

REFUSALS = (ValueError, RuntimeError, FileNotFoundError)
NOT_REFUSALS = (UnicodeError, RecursionError, NotImplementedError)
SPARE_BYTES = 3 << 30  # of address space, beyond what the worker has after its start
LONG = 2000
END = 20  # characters of a long name that a message must show
NO_SIZE = re.compile(r"(width|height) must be an integer .*, got nothing$")
PATCH = 256  # characters of a message that is reported

Info = dict[str, Any]
Step = tuple[str, Callable[[], Any]]  # an entry point, and what it found, for comparison


class Trial:
    """Input that entry points take one after another.

    Attributes:
        steps: outcome of each entry point: what it found, or the refusal's text.
        problems: what is wrong with the outcomes.
    """

    def __init__(self, names: Sequence[str], *, is_list: bool = False) -> None:
        self._is_list = is_list  # a refusal may have a line per setting
        # A message may cut a long name, and shows either end of it.
        parts = (part for name in map(_comparable, names) for part in (name[:END], name[-END:]))
        self._names = [part for part in parts if part]
        self.steps: dict[str, tuple[bool, Any]] = {}
        self.problems: list[str] = []

    def run(self, name: str, function: Callable[[], Any]) -> Any:
        """Call an entry point; return what it found, None if it refused the input."""
        try:
            found = function()
        except REFUSALS as error:
            message = str(error)
            self.steps[name] = (False, f"{type(error).__name__}: {message[:PATCH]}")
            if isinstance(error, NOT_REFUSALS):
                self._wrong(name, error, "is no refusal")
            elif not self._is_short(message):
                self._wrong(name, error, f"must be one short printable line ({len(message)})")
            elif not any(one in _comparable(message) for one in self._names):
                self._wrong(name, error, "does not name the input")
            return None
        except BaseException as error:  # anything else is a traceback for the user
            self.steps[name] = (False, type(error).__name__)
            self._wrong(name, error, "is no refusal")
            return None
        self.steps[name] = (True, found)
        return found

    def agree(self, *names: str) -> None:
        """Note a problem unless the named steps all accept, with the same findings, or refuse."""
        outcomes = {name: self.steps[name] for name in names if name in self.steps}
        accepted = {name: found for name, (ok, found) in outcomes.items() if ok}
        if 0 < len(accepted) < len(outcomes):
            refused = {name: found for name, (ok, found) in outcomes.items() if not ok}
            self.problems.append(f"accepted by {', '.join(accepted)}; refused: {refused}")
        elif len(set(map(repr, accepted.values()))) > 1:
            self.problems.append(f"findings differ: {accepted}")

    def _is_short(self, message: str) -> bool:
        lines = message.split("\n") if self._is_list else [message]
        return 0 < len(message) <= LONG and all(line.isprintable() for line in lines)

    def _wrong(self, name: str, error: BaseException, what: str) -> None:
        text = ascii(str(error)[:PATCH])
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        self.problems.append(f"{name}: {type(error).__name__} at {where} {what}: {text}")


def _comparable(text: str) -> str:
    """Return a text without what escaping it once or twice may change."""
    escaped = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
    return escaped.replace("\\", "").replace("'", "").replace("//", "/")


class Messages(logging.Handler):
    """Log records and warnings that are no short printable lines."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record with control characters, or of great length."""
        text = record.getMessage()
        if not text.replace("\n", "").isprintable() or len(text) > LONG:
            self.problems.append(f"log line: {text[:PATCH]!a}")


def try_annotations(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Train, evaluate and predict with an annotation file."""
    file, photos = Path(info["folder"]) / "hostile.json", sound.photos
    parsed = trial.run("read_annotations", lambda: _counts(read_annotations(file).ground_truth))
    trial.run("read_ground_truth", lambda: _counts(read_ground_truth(file)))
    # Scores and ids need no sizes of images.
    has_no_size = parsed is None and bool(NO_SIZE.search(trial.steps["read_annotations"][1]))
    if not has_no_size:
        trial.agree("read_annotations", "read_ground_truth")
    if parsed is None:
        for name, step in _uses(info, sound, detector, photos, file):
            found = trial.run(name, step)
            if found is not None and not (has_no_size and name == "predict"):
                trial.problems.append(f"{name} accepts a file that read_annotations refuses")
        return
    trial.run("CocoDataset", lambda: _samples(photos, file))
    trial.run("evaluate_results", lambda: evaluate_results(sound.results, file).num_images)
    for name, step in _uses(info, sound, detector, photos, file):
        trial.run(name, step)


def _uses(info: Info, sound: Sound, detector: Detector, photos: Path, file: Path) -> Iterator[Step]:
    """Yield the workflows that take a data set."""
    yield (
        "evaluate",
        lambda: (
            evaluate(
                detector, images=photos, annotations=file, num_workers=0, device="cpu"
            ).num_images
        ),
    )
    yield (
        "predict",
        lambda: len(predict(photos, checkpoint=detector, annotations=file).detections),
    )
    yield "train", lambda: _train(info, sound, photos, file)


def _train(info: Info, sound: Sound, photos: Path, file: Path, start: Path | None = None) -> int:
    places = {"images": photos, "annotations": file}
    settings = {
        f"data.{part}.{key}": str(one) for part in ("train", "val") for key, one in places.items()
    }
    run = Path(info["folder"]) / "run"
    train(
        sound.config,
        overrides=settings,
        run_dir=run,
        overwrite=True,
        finetune_from=start,
        device="cpu",
    )
    return 1


def _counts(truth: Any) -> tuple[int, int]:
    return len(truth.image_ids), len(truth.images)


def _samples(photos: Path, file: Path) -> list[Any]:
    dataset = CocoDataset(photos, file)
    samples = [dataset[index] for index in range(len(dataset))]
    return [(sample.image.size, len(sample.labels)) for sample in samples]


def try_results(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Score a results file."""
    file = Path(info["folder"]) / "hostile.json"
    trial.run("evaluate_results", lambda: evaluate_results(file, sound.annotations).num_images)


def try_config(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Read a config, and read again what it was resolved to."""
    file = Path(info["folder"]) / "config.yaml"
    _check_config(trial, info, lambda: load_config(file))


def try_override(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Change a setting, and read again what the config was resolved to."""
    _check_config(trial, info, lambda: load_config(sound.config, [info["override"]]))


def _check_config(trial: Trial, info: Info, read: Callable[[], Any]) -> None:
    text = trial.run("load_config", lambda: to_yaml(read()))
    if text is not None:
        again = Path(info["folder"]) / "again.yaml"
        again.write_text(text, encoding="utf-8")
        trial.run("load_config again", lambda: to_yaml(load_config(again)))
        trial.agree("load_config", "load_config again")


def try_checkpoint(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Load a checkpoint, and use it in the workflows."""
    file = Path(info["folder"]) / info["checkpoint"]
    photo = sound.photos / "1.png"
    loaded = trial.run("from_checkpoint", lambda: bool(Detector.from_checkpoint(file, "cpu")))
    trial.run("predict", lambda: len(predict(photo, checkpoint=file, device="cpu").detections))
    trial.run(
        "evaluate",
        lambda: (
            evaluate(
                file,
                images=sound.photos,
                annotations=sound.annotations,
                num_workers=0,
                device="cpu",
            ).num_images
        ),
    )
    trial.run("train", lambda: _train(info, sound, sound.photos, sound.annotations, file))
    for name in ("predict", "evaluate"):  # fine-tuning takes the weights alone
        if loaded is None and trial.steps[name][0]:
            trial.problems.append(f"{name} accepts a checkpoint that from_checkpoint refuses")


def try_photo(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Read a photo for training, evaluation and prediction."""
    folder = Path(info["folder"])
    images, photo = folder / "images", folder / "images" / info["photo"]
    size = trial.run("read_photo", lambda: read_photo(photo).size)
    trial.run("as_photo", lambda: as_photo(photo).size)
    trial.run("Detector.predict", lambda: (detector.predict(photo), size)[1])
    trial.run("predict", lambda: (_predict(photo, detector, folder), size)[1])
    width, height = size or PHOTO_SIZE
    file = folder / "one.json"
    image = {"id": 1, "file_name": photo.name, "width": width, "height": height}
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, width, height]}
    categories = detector.label_space.to_json()
    content = {"images": [image], "annotations": [{**box, "area": width * height}]}
    file.write_text(json.dumps({**content, "categories": categories}))
    trial.run("CocoDataset", lambda: _samples(images, file)[0][0])
    trial.run(
        "evaluate",
        lambda: (
            evaluate(detector, images=images, annotations=file, num_workers=0, device="cpu"),
            size,
        )[1],
    )
    trial.run("train", lambda: (_train(info, sound, images, file), size)[1])
    trial.agree(*trial.steps)


def _predict(photo: Path, detector: Detector, folder: Path) -> None:
    predict(photo, checkpoint=detector, out=folder / "pictures", threshold=0.0)


def try_name(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Read a data set with a hostile file name for training and evaluation."""
    folder = Path(info["folder"])
    images, file = folder / "images", folder / "named.json"
    trial.run("CocoDataset", lambda: len(_samples(images, file)))
    trial.run(
        "evaluate",
        lambda: (
            evaluate(
                detector, images=images, annotations=file, num_workers=0, device="cpu"
            ).num_images
        ),
    )
    trial.run("train", lambda: _train(info, sound, images, file))
    trial.agree("CocoDataset", "evaluate", "train")


def try_array(trial: Trial, info: Info, sound: Sound, detector: Detector) -> None:
    """Predict and explain on an array."""
    array = _array(**info["array"])
    trial.run("as_photo", lambda: bool(as_photo(array).size))
    trial.run("Detector.predict", lambda: detector.predict(array) is not None)
    trial.run("Detector.explain", lambda: bool(detector.explain(array, queries=1)))
    trial.agree(*trial.steps)


def _array(dtype: str, shape: list[int], fill: str, layout: str) -> Any:
    if fill == "noise":
        values: Any = np.random.default_rng(0).random(shape) * 255
    else:
        values = np.full(shape, float(fill))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.asarray(values).astype(dtype)
    array = np.array(array)  # of a scalar, too
    match layout:
        case "F":
            return np.asfortranarray(array)
        case "reversed":
            return array[::-1] if array.ndim else array
        case "step":
            return array.repeat(2, axis=0)[::2] if array.ndim else array
        case "read-only":
            array.flags.writeable = False
        case "tensor" if array.dtype.isnative and array.dtype.kind != "U":
            return torch.from_numpy(array)
        case "image" if array.ndim == 2 and array.size and dtype == "u1":
            return Image.fromarray(array)
    return array


TRIALS: dict[str, Callable[[Trial, Info, Sound, Detector], None]] = {
    "annotations": try_annotations,
    "results": try_results,
    "config": try_config,
    "override": try_override,
    "checkpoint": try_checkpoint,
    "photo": try_photo,
    "name": try_name,
    "array": try_array,
}


def main() -> None:
    """Serve inputs until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does not disturb the answers
    sound = Sound(Path(sys.argv[1]))
    messages = Messages()
    logging.getLogger("deformable_detr").addHandler(messages)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(messages)
    detector = Detector.from_checkpoint(sound.checkpoint, "cpu")
    detector.predict(sound.photos / "1.png")
    _limit_memory()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        info = json.loads(line)
        messages.problems.clear()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        trial, begin = _trial(info), time.process_time()
        TRIALS[info["kind"]](trial, info, sound, detector)
        answer = {
            "steps": {name: ok for name, (ok, _) in trial.steps.items()},
            "problems": [*trial.problems, *messages.problems],
            "texts": [found for ok, found in trial.steps.values() if not ok],
            "seconds": time.process_time() - begin,
            "peak_mb": _peak_mb(),
        }
        print(json.dumps(answer), file=answers, flush=True)


def _trial(info: Info) -> Trial:
    return Trial(info["names"], is_list=info["kind"] in ("config", "override", "checkpoint"))


def _limit_memory() -> None:
    """Let allocations fail before the machine runs out of memory."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE_BYTES, size + SPARE_BYTES))


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    main()
