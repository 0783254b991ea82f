"""No use of a detector accepts predictions or weights that are infinite or NaN."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.coco_files import CocoFiles, write_coco_set
from helpers.command_line import CommandLine
from helpers.damage import DAMAGES, fill
from helpers.tiny_checkpoint import LABEL_SPACE
from PIL import Image

import deformable_detr
from deformable_detr.detector import Detector
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from deformable_detr.finite import NonFinitePredictionsError

CATEGORIES = dict(zip(LABEL_SPACE.category_ids, LABEL_SPACE.names, strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CocoFiles:
    folder = tmp_path_factory.mktemp("data")
    return write_coco_set(folder, num_images=2, size=(48, 64), categories=CATEGORIES)


@pytest.fixture(scope="module")
def sound(checkpoint: Path) -> Detector:
    return Detector.from_checkpoint(checkpoint, "cpu")


def photo_of(files: CocoFiles) -> Path:
    return files.images / "0001.png"


def evaluate(detector: Detector, files: CocoFiles, out: Path) -> None:
    deformable_detr.evaluate(
        detector,
        images=files.images,
        annotations=files.annotations,
        num_workers=0,
        batch_size=1,
        out=out / "results.json",
    )


def predict(detector: Detector, files: CocoFiles, out: Path) -> None:
    deformable_detr.predict(files.images, checkpoint=detector, out=out / "pictures")


def explain(detector: Detector, files: CocoFiles, out: Path) -> None:
    deformable_detr.explain(photo_of(files), checkpoint=detector, out=out / "pictures")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("use", [evaluate, predict, explain])
def test_an_error_names_the_image_the_share_and_the_cause(
    tmp_path: Path,
    files: CocoFiles,
    sound: Detector,
    use: Callable[[Detector, CocoFiles, Path], None],
    damage: str,
) -> None:
    detector = copy.deepcopy(sound)
    harm, words = DAMAGES[damage]
    harm(detector.model)
    with pytest.raises(NonFinitePredictionsError, match=words) as caught:
        use(detector, files, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    if use is explain:  # an image in memory
        assert "for the image; likely cause: " in message
    elif use is evaluate:
        assert f"for image 1 ({photo_of(files)}); likely cause: " in message
    elif damage.startswith(("one", "a logit")) and use is predict:  # of the last in a batch
        assert f"for image {files.images / '0002.png'}; " in message
    else:
        assert f"for image {photo_of(files)}; " in message
    assert not list(tmp_path.glob("**/*.json"))
    assert not list(tmp_path.glob("**/*.png"))


def test_images_of_the_api_are_named_by_path_or_position(files: CocoFiles, sound: Detector) -> None:
    detector = copy.deepcopy(sound)
    DAMAGES["one box"][0](detector.model)
    for use in (detector.predict, detector.explain):
        with pytest.raises(NonFinitePredictionsError) as caught:
            use(photo_of(files))
        assert f"for image {photo_of(files)}; likely cause: " in str(caught.value)
    with Image.open(photo_of(files)) as image:
        photo = image.convert("RGB")
    with pytest.raises(NonFinitePredictionsError) as caught:  # of the last in a batch of one size
        detector.predict([photo, photo.rotate(90, expand=True), photo], classes=["dog"])
    assert caught.value.position == 2
    assert "for image 2 of those given, from 0; " in str(caught.value)


@pytest.mark.parametrize("part", ["decoder.box_heads", "running_var", "sampling_offsets"])
def test_a_file_with_damaged_weights_is_refused_by_all_commands(
    tmp_path: Path, run: CommandLine, checkpoint: Path, files: CocoFiles, part: str
) -> None:
    """Sampling points that are NaN give finite predictions, so that only the weights show it."""
    content = load_checkpoint(checkpoint)
    for name, value in content.model.items():
        if part in name:
            value.view(-1)[:2] = torch.nan
    damaged = tmp_path / "damaged.pth"
    save_checkpoint(damaged, content)
    data = ["--images", files.images, "--annotations", files.annotations]
    out = tmp_path / "out"
    for command in (
        ["evaluate", "--checkpoint", damaged, *data, "--out", out],
        ["predict", "--checkpoint", damaged, photo_of(files), "--out", out],
        ["explain", "--checkpoint", damaged, photo_of(files), "--out", out],
        ["convert", damaged, out],
    ):
        message = run.fails(*command)
        expected = (
            rf"checkpoint {re.escape(str(damaged))} must hold finite numbers, got \d+ of \d+ "
            rf"tensors that are not finite, first: \S*{part}\S* \(2 of \d+ values\); take an "
        )
        assert re.match(expected, message)
        assert not out.exists()


def test_sampling_points_that_are_not_finite_are_not_drawn(
    files: CocoFiles, sound: Detector
) -> None:
    detector = copy.deepcopy(sound)
    fill(detector.model, "decoder.layers.0.cross_attn.sampling_offsets.bias")
    detector.predict(photo_of(files))
    with pytest.raises(ValueError, match=r"sampling points of .* must be finite to be drawn, got"):
        detector.explain(photo_of(files))
