"""Numbers too large for what holds them: refused in one line, wherever users give them."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from helpers.coco_files import write_coco_set
from helpers.command_line import CommandLine
from helpers.config_fields import choose_kinds, config_fields, dotted
from helpers.tiny_checkpoint import LABEL_SPACE
from typer.testing import CliRunner

import deformable_detr
from deformable_detr import Detector
from deformable_detr.arguments import LARGEST_COUNT, MOST_BATCH, MOST_WORKERS, require_integer
from deformable_detr.cli.main import app
from deformable_detr.config import ConfigError, TrainConfig
from deformable_detr.config.loading import load_config, validate_config

HUGE = "9" * 5000  # more digits than Python converts
TOO_LARGE = ("10000000000000000000000", "9" * 200, HUGE, "-" + HUGE, "1e39", "1e400", "-1e400")
CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))
LONG = pytest.param(10**5000, id="5001 digits")
NUMBERS = [
    key
    for key, annotation in config_fields().items()
    if re.search(r"\b(int|float)\b", re.sub(r"Literal\[.*?\]", "", str(annotation)))
]


def assert_one_line(message: str, *names: str) -> None:
    assert "\n" not in message
    assert len(message) < 300, message
    assert "set_int_max_str_digits" not in message
    for name in names:
        assert name in message, message


@pytest.mark.parametrize("key", NUMBERS)
def test_a_setting_refuses_numbers_that_are_too_large(key: str) -> None:
    config = load_config("deformable_detr_r50", choose_kinds(key))
    annotation = str(config_fields()[key])
    form = "{0}" if "uple" not in annotation else "[{0}]" if "..." in annotation else "[{0}, {0}]"
    for text in TOO_LARGE:
        with pytest.raises(ConfigError) as error:
            load_config(config, [f"{dotted(key)}={form.format(text)}"])
        for line in str(error.value).splitlines():
            assert_one_line(line, f"override {dotted(key)}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"train: {{seed: {HUGE}}}", "train.seed"),
        (f"train: {{max_steps: {'9' * 200}}}", "train.max_steps"),
        (f"data: {{augmentation: {{kind: coco, sizes: [{HUGE}]}}}}", "data.augmentation.sizes"),
        (f"base: {HUGE}", "base"),
        (f"? {HUGE}\n: 1", ""),
        (f"{HUGE}: 1", "line 1"),
        (f"{{? {HUGE} : 1, ? {HUGE} : 2}}", "duplicate key"),
        ("train: {optimizer: {lr: 1e400}}", "train.optimizer.lr: must be a finite number, got inf"),
    ],
)
def test_a_file_is_refused_with_its_name_and_the_entry(
    tmp_path: Path, text: str, place: str
) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "x.yaml")
    assert_one_line(str(error.value), "x.yaml", place)


@pytest.mark.parametrize("value", [10**22, LONG, math.inf, math.nan])
def test_values_given_in_python_are_refused_alike(value: float) -> None:
    with pytest.raises(ValueError, match="seed"):
        TrainConfig(seed=value)
    with pytest.raises(ConfigError) as error:
        load_config("quickstart", {"train.seed": value})
    assert_one_line(str(error.value), "override train.seed")
    with pytest.raises(ConfigError) as error:
        validate_config({"train": {"clip_norm": value}}, source="checkpoint x")
    assert_one_line(str(error.value), "checkpoint x.train.clip_norm")


def test_the_largest_numbers_are_taken() -> None:
    largest = {
        "train.seed": 2**64 - 1,
        "train.max_steps": 10**19,
        "model.encoder.ffn_dim": 65536,
    }
    config = load_config("deformable_detr_r50", largest)
    assert (config.train.seed, config.train.max_steps) == (2**64 - 1, 10**19)
    assert load_config("deformable_detr_r50", ["train.clip_norm=-0.0"]).train.clip_norm == 0
    assert validate_config(config.model_dump(mode="json"), source="x") == config


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.train.images=2017", "2017"),
        ("data.val.annotations=012", "012"),
        ("data.val.annotations=1e5", "1e5"),
        ("model.backbone.weights=true", "true"),
        ("data.train.images='2017'", "2017"),
        ("data.train.images=~", None),
    ],
)
def test_a_path_or_name_that_looks_like_a_number_stays_a_text(
    override: str, text: str | None
) -> None:
    key = override.partition("=")[0]
    for overrides in ([override], dict([override.split("=")])):
        value: Any = load_config("quickstart", overrides)
        for part in key.split("."):
            value = getattr(value, part)
        assert value == (Path(text) if text is not None and key.startswith("data") else text)


def number_options(group: typer.Typer, *above: str) -> Iterator[tuple[list[str], str]]:
    """Yield the options of all commands that are an int or a float: path of the command, name."""
    for below in group.registered_groups:
        yield from number_options(below.typer_instance, *above, below.name)
    for command in group.registered_commands:
        for name, hint in get_type_hints(command.callback).items():
            if {int, float} & {hint, *get_args(hint)}:
                path = [*above, command.name or command.callback.__name__]
                yield path, f"--{name.replace('_', '-')}"


NUMBER_OPTIONS = list(number_options(app))


def test_the_walk_finds_options_of_all_levels() -> None:
    assert (["evaluate"], "--num-workers") in NUMBER_OPTIONS
    assert (["predict"], "--threshold") in NUMBER_OPTIONS
    assert (["benchmark", "ops"], "--rounds") in NUMBER_OPTIONS


@pytest.mark.parametrize(
    ("command", "option"),
    NUMBER_OPTIONS,
    ids=[" ".join([*path, name]) for path, name in NUMBER_OPTIONS],
)
def test_every_number_option_names_its_range(command: list[str], option: str) -> None:
    runner = CliRunner()
    for text in (HUGE, "1" + "0" * 30, "1e9", "-1", "nan", "inf", "1e400", "2.5", "", "True"):
        # The first given option is looked at first, so that no other one is needed.
        error = runner.invoke(app, [*command, option, text], standalone_mode=False).exception
        assert isinstance(error, typer.BadParameter)
        message = error.format_message()
        assert_one_line(message, option, text[:20])
        assert re.search(r"must be (an integer|a number) in -?\d+\.\.\d+, got", message)


def test_the_largest_numbers_of_options_are_bounded_by_the_input(
    run: CommandLine, checkpoint: Path, tmp_path: Path
) -> None:
    files = write_coco_set(
        tmp_path / "set", num_images=2, size=(48, 64), categories=CATEGORIES, empty=[]
    )
    most, batch = str(LARGEST_COUNT), str(MOST_BATCH)
    by = ("--checkpoint", checkpoint, "--device", "cpu", "--out")
    outcomes = [
        run(
            *("predict", files.images, *by, tmp_path / "a", "--threshold", "0"),
            *("--max-detections", most, "--batch-size", batch),
        ),
        run(
            *("evaluate", *by, tmp_path / "b.json", "--images", files.images),
            *("--annotations", files.annotations, "--max-detections", most),
            *("--pictures", tmp_path / "b", "--num-pictures", most),
            *("--batch-size", batch, "--num-workers", str(MOST_WORKERS)),
        ),
        run(
            *("explain", next(files.images.iterdir()), *by, tmp_path / "c"),
            *("--queries", most),
        ),
    ]
    assert [(outcome.code, outcome.err) for outcome in outcomes if outcome.code] == []


def test_a_benchmark_that_needs_more_memory_than_there_is(run: CommandLine) -> None:
    for command in ("training", "processes"):
        message = run.fails("benchmark", command, "--size", "8192", "--images", "1024")
        assert_one_line(message, "size and images must fit", "1,024 images of 8192 x 8192", " GB")


@pytest.mark.parametrize("cell", [f"{HUGE},1", f"1,{HUGE}", "1,-1", "1", "1,2,3", "1,nan"])
def test_a_cell_is_two_integers(run: CommandLine, cell: str) -> None:
    message = run.fails("explain", "x.png", "--checkpoint", "x", "--out", "y", "--cell", cell)
    assert_one_line(message, "--cell must be ROW,COLUMN, two integers")


@pytest.mark.parametrize("value", [10**30, LONG, math.nan, math.inf, 2.5, True, "3", -1])
def test_functions_name_the_argument(value: Any, tmp_path: Path) -> None:
    files = {"images": tmp_path, "annotations": tmp_path / "x.json"}
    calls = {
        "batch_size": lambda: deformable_detr.predict("x", checkpoint="x", batch_size=value),
        "num_workers": lambda: deformable_detr.evaluate("x", **files, num_workers=value),
        "num_pictures": lambda: deformable_detr.evaluate("x", **files, num_pictures=value),
        "queries": lambda: deformable_detr.explain("x", checkpoint="x", queries=value),
        "noise": lambda: deformable_detr.explain("x", checkpoint="x", noise=value),
        "cell": lambda: deformable_detr.explain("x", checkpoint="x", cell=(0, value)),
        "num_images": lambda: deformable_detr.overfit("quickstart", value),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=name) as error:
            call()
        assert_one_line(str(error.value))
    with pytest.raises(ValueError, match="n must be a"):
        require_integer("n", value, at_least=0)


def test_a_detector_refuses_a_threshold_that_is_no_fraction(checkpoint: Path) -> None:
    detector = Detector.from_checkpoint(checkpoint, "cpu")
    message = "threshold must be (between 0 and 1|a number), got"
    for value in (math.nan, "0.5", None, 10**5000, True, Fraction(10**400)):
        with pytest.raises(ValueError, match=message) as error:
            next(detector.predict_each([], threshold=value))
        assert_one_line(str(error.value))
