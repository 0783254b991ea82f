from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import CommandLine
from PIL import Image
from torch import nn

from deformable_detr import explain
from deformable_detr.detector import Detector
from deformable_detr.layers.deform_conv import DeformConv2d
from deformable_detr.models.necks.asff import ASFF, ASFFNeck
from deformable_detr.visualize.receptive_field import ReceptiveField
from deformable_detr.workflows import explanation


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def rich(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """Detector with ASFF and two deformable convolutions, returned for every checkpoint."""
    detector = Detector.from_checkpoint(checkpoint, "cpu")
    model = detector.model
    block = model.backbone.body.layer4
    deformable = (DeformConv2d(512, 512, 3, padding=1) for _ in range(2))
    model.backbone.body.layer4 = nn.Sequential(block, *deformable)
    channels = [projection.in_channels for projection in model.neck.projections]
    model.neck = ASFFNeck(channels, embed_dim=64, fusion=ASFF(64, 2))
    model.eval()
    monkeypatch.setattr(Detector, "from_checkpoint", lambda *arguments: detector)
    return detector


def _names(outcome_text: str) -> list[str]:
    return [Path(line).name for line in outcome_text.splitlines()]


def test_the_sampling_points_of_the_best_detections_are_drawn_by_default(
    run: CommandLine, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"

    outcome = run("explain", photo, "--checkpoint", checkpoint, "--out", out)

    assert outcome.code == 0, outcome.err
    assert _names(outcome.out) == ["query_1.png", "query_2.png", "query_3.png"]
    assert sorted(file.name for file in out.glob("*.png")) == _names(outcome.out)
    with Image.open(out / "query_1.png") as picture:
        assert picture.width > 1000


def test_the_receptive_field_of_a_layer_is_drawn(
    run: CommandLine, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    def erf(*options: str) -> bytes:
        arguments = ("--checkpoint", checkpoint, "--out", tmp_path, "--queries", "0")
        layer = ("--erf", "neck.projections.0")
        outcome = run("explain", photo, *arguments, *layer, *options)
        assert outcome.code == 0, outcome.err
        assert _names(outcome.out) == ["erf_neck.projections.0.png"]
        return (tmp_path / "erf_neck.projections.0.png").read_bytes()

    assert len({erf(), erf("--cell", "0,1"), erf("--noise", "2")}) == 3


def test_noise_images_run_a_few_at_a_time(
    checkpoint: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.Tensor] = []
    fields: list[torch.Tensor] = []

    def field(model: nn.Module, images: torch.Tensor, layer: str, **_: object) -> ReceptiveField:
        drawn.append(images)
        return ReceptiveField(layer, (0, 0), (1, 1), images.double().sum(1).mean(0))

    monkeypatch.setattr(explanation, "effective_receptive_field", field)
    monkeypatch.setattr(
        explanation, "draw_receptive_field", lambda image, field: fields.append(field.strength)
    )
    for pixels in (2**19, 7 * 48 * 64):
        monkeypatch.setattr(explanation, "_NOISE_PIXELS", pixels)
        drawn.clear()
        explain(photo, checkpoint=checkpoint, queries=0, erf="neck", noise=20)
        assert [len(images) for images in drawn] == ([20] if pixels == 2**19 else [7, 7, 6])
        torch.testing.assert_close(fields[-1], torch.cat(drawn).double().sum(1).mean(0))


def test_level_weights_and_deformable_points_are_drawn(
    run: CommandLine, rich: Detector, photo: Path, tmp_path: Path
) -> None:
    options = ("--checkpoint", "c", "--out", tmp_path / "out", "--queries", "0", "--fusion")
    layers = ("--deform", "backbone.body.layer4.1", "--deform", "backbone.body.layer4.2")

    outcome = run("explain", photo, *options, *layers, "--cell", "1,0")

    assert outcome.code == 0, outcome.err
    assert _names(outcome.out) == ["deform_backbone.body.layer4.2.png", "fusion.png"]


def test_the_error_for_an_unknown_deformable_layer_lists_the_existing_ones(
    run: CommandLine, rich: Detector, photo: Path, tmp_path: Path
) -> None:
    message = run.fails(
        "explain", photo, "--checkpoint", "c", "--out", tmp_path / "out", "--deform", "stem"
    )

    assert message == (
        "deform must name deformable convolutions of the model, got stem; it has "
        "backbone.body.layer4.1, backbone.body.layer4.2"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--erf", "neck.projection.0"), "layer must be a module of the model, got"),
        (("--erf", "neck.norms.0", "--cell", "99,0"), "cell must be within the map of"),
        (("--erf", "neck"), "layer neck must return a map (N, C, H, W), got Pyramid"),
        (("--cell", "1"), "--cell must be ROW,COLUMN, two integers, got '1'"),
        (("--fusion",), "fusion needs a model with an ASFF neck, got one without"),
        (("--deform", "stem"), "deform must name deformable convolutions of the model, got stem"),
        (("--checkpoint", "none.pth"), "checkpoint none.pth does not exist"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(
    run: CommandLine,
    checkpoint: Path,
    photo: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    expected: str,
) -> None:
    out = tmp_path / "out"

    message = run.fails(
        "explain", photo, "--checkpoint", checkpoint, "--out", out, "--queries", "1", *options
    )

    assert message.startswith(expected)
    assert not out.exists()


def test_the_error_for_an_unknown_layer_suggests_the_nearest(
    run: CommandLine, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    options = ("--checkpoint", checkpoint, "--out", tmp_path, "--erf", "neck.projection.0")

    assert "neck.projections.0" in run.fails("explain", photo, *options)


def test_a_missing_image_is_named(run: CommandLine, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", checkpoint, "--out", tmp_path)

    message = run.fails("explain", tmp_path / "none.jpg", *options)

    assert message == f"image {tmp_path / 'none.jpg'} must exist, found nothing there"
