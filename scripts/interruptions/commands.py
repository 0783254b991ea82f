"""Commands that write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interruptions.material import Material

Arguments = Sequence[str | Path]


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        arguments: its arguments, by the folder that it may write to.
        outputs: paths of its results in the folder.
        again: arguments that a second start needs besides, if there is a run.
        processes: number of its processes; several are started by torchrun.
        processes_again: number of processes of a second start; None for as many.
        on_run: it works on a finished run in the folder.
    """

    arguments: Callable[[Material, Path], Arguments]
    outputs: tuple[str, ...]
    again: tuple[str, ...] = ()
    processes: int = 1
    processes_again: int | None = None
    on_run: bool = False


def _train(material: Material, out: Path) -> Arguments:
    start: list[str | Path] = ["train", "--config", "deformable_detr_r50", "--device", "cpu"]
    return [*start, "--run-dir", out / "run", *material.settings()]


def _train_on(material: Material, out: Path) -> Arguments:
    steps = ("train.max_steps=12", "train.checkpoint_every=1", "train.eval_every_epochs=1")
    return [*_train(material, out), *steps, "--resume", "auto"]


def _train_anew(material: Material, out: Path) -> Arguments:
    steps = ("train.max_steps=6", "train.checkpoint_every=1", "train.eval_every_epochs=1")
    return [*_train(material, out), *steps, "--overwrite"]


def _detector(material: Material) -> Arguments:
    return ["--checkpoint", material.checkpoint, "--device", "cpu"]


def _evaluate(material: Material, out: Path) -> Arguments:
    data = ("--images", material.images, "--annotations", material.annotations)
    places = ("--out", out / "results.json", "--pictures", out / "pictures")
    return ["evaluate", *_detector(material), *data, *places]


def _predict(material: Material, out: Path) -> Arguments:
    options = ("--threshold", "0", "--batch-size", "2")
    return ["predict", material.images, *_detector(material), "--out", out / "found", *options]


def _data(name: str, *arguments: str) -> Callable[[Material, Path], Arguments]:
    return lambda material, out: [
        *(*name.split(), *arguments, "--out", out / "fetched"),
        *("--wheel", material.wheel(name)),
    ]


TRAINED = ("run/last.pth", "run/best.pth")
EVALUATED = ("results.json", "pictures")
COMMANDS = {
    "train": Command(_train_on, TRAINED),
    "train x2": Command(_train_on, TRAINED, processes=2),
    "train --overwrite": Command(_train_anew, TRAINED, on_run=True),
    "train --overfit": Command(
        lambda material, out: [*_train(material, out), "--overfit", "2"],
        ("run/last.pth",),
        again=("--overwrite",),
    ),
    "train --evaluate-only": Command(
        lambda material, out: [
            *_train(material, out),
            *("--evaluate-only", "--finetune-from", material.checkpoint),
        ],
        ("run/results.json",),
    ),
    "evaluate": Command(_evaluate, EVALUATED),
    "evaluate x2": Command(_evaluate, EVALUATED, processes=2),
    "evaluate x2, x1": Command(_evaluate, EVALUATED, processes=2, processes_again=1),
    "predict": Command(_predict, ("found",)),
    "explain": Command(
        lambda material, out: [
            *("explain", material.images / "001.png", *_detector(material)),
            *("--out", out / "pictures"),
        ],
        ("pictures",),
    ),
    "convert": Command(
        lambda material, out: ["convert", material.checkpoint, out / "native.pth"],
        ("native.pth",),
    ),
    "convert --to transformers": Command(
        lambda material, out: ["convert", material.resnet, out / "other", "--to", "transformers"],
        ("other",),
    ),
    "report": Command(lambda _, out: ["report", out / "run"], ("run/report.html",), on_run=True),
    "data trees": Command(_data("data trees"), ("fetched",)),
    "data weights": Command(_data("data weights", "efficientnet_lite0"), ("fetched",)),
    "data convert": Command(
        lambda material, out: [
            *("data", "convert", material.annotations, out / "converted", "--to", "yolo"),
        ],
        ("converted",),
    ),
    "data stats": Command(
        lambda material, out: ["data", "stats", material.annotations, "--out", out / "page.html"],
        ("page.html",),
    ),
    "data show": Command(
        lambda material, out: ["data", "show", material.annotations, "--out", out / "sheet.jpg"],
        ("sheet.jpg",),
    ),
    "data split": Command(
        lambda material, out: ["data", "split", material.annotations, out / "parts"],
        ("parts",),
    ),
    "doctor data FILE": Command(
        lambda material, out: [
            *("doctor", "data", material.faulty / "train.json", "--fix", out / "fixed.json"),
        ],
        ("fixed.json",),
    ),
    "doctor data DIR": Command(
        lambda material, out: ["doctor", "data", material.faulty, "--fix", out / "fixed"],
        ("fixed",),
    ),
}
