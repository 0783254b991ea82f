"""DINO with imported weights, compared with numbers that the official code printed.

The numbers are those of IDEA-Research/DINO on the CPU in float32, with weights and images that
their names determine.
"""

from pathlib import Path

import pytest
import torch
from helpers.dino_golden import golden_images
from helpers.dino_weights import DinoModel, official_dino, state_by_name

from deformable_detr.builders.weights import model_with_weights
from deformable_detr.config.loading import validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.structures import ModelOutput, Predictions

# Of all layers, in order: sum of logits, sum of boxes.
SUMS = [
    (-37760.139, 418.1842),
    (-38706.695, 407.7379),
    (-34171.057, 412.6509),
    (-35291.377, 407.2654),
    (-37207.753, 411.6536),
    (-36365.706, 416.9490),
]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> ModelOutput:
    """Run the model that an official file describes by itself, with 91 rows of classes."""
    path: Path = tmp_path_factory.mktemp("dino") / "checkpoint.pth"
    shapes = official_dino(DinoModel(queries=100, classes=91))
    torch.save({"model": state_by_name(shapes, shared_heads=True)}, path)
    weights = read_weights(path, raw_labels=True)
    path.unlink()
    config = validate_config(weights.config, source="the file")
    model = model_with_weights(weights, config, "the file").eval()
    with torch.no_grad():
        return model(golden_images())


def layers(output: ModelOutput) -> list[Predictions]:
    return [*output.auxiliary, output.last]


@pytest.mark.parametrize("layer", range(6))
def test_sums_of_each_layer_are_the_official_ones(output: ModelOutput, layer: int) -> None:
    predictions = layers(output)[layer]
    logits, boxes = SUMS[layer]
    assert float(predictions.logits.double().sum()) == pytest.approx(logits, rel=1e-6)
    assert float(predictions.boxes.double().sum()) == pytest.approx(boxes, rel=1e-6)


@pytest.mark.parametrize(
    ("part", "magnitude", "largest", "logits", "box"),
    [
        (
            "last",
            37231.069,
            1.30988,
            (-0.63055, -0.34260, -3.15586),
            (0.001338, 0.990640, 0.248623, 0.030390),
        ),
        (
            "first",
            38036.584,
            1.73524,
            (-2.97608, -2.94905, -1.15840),
            (0.032716, 0.964430, 0.144388, 0.036176),
        ),
        (
            "proposals",
            37940.256,
            1.23837,
            (-3.58053, -3.20625, -3.40676),
            (0.052373, 0.946216, 0.131043, 0.042949),
        ),
    ],
)
def test_single_values_are_the_official_ones(
    output: ModelOutput,
    part: str,
    magnitude: float,
    largest: float,
    logits: tuple[float, ...],
    box: tuple[float, ...],
) -> None:
    parts = {"last": output.last, "first": output.auxiliary[0], "proposals": output.encoder}
    predictions = parts[part]
    assert predictions is not None
    assert float(predictions.logits.double().abs().sum()) == pytest.approx(magnitude, rel=1e-6)
    assert float(predictions.logits.max()) == pytest.approx(largest, abs=1e-4)
    assert predictions.logits[0, 0, :3].tolist() == pytest.approx(logits, abs=1e-4)
    assert predictions.boxes[0, 0].tolist() == pytest.approx(box, abs=1e-5)


def test_proposals_and_last_boxes_are_the_official_ones(output: ModelOutput) -> None:
    assert output.encoder is not None
    assert float(output.encoder.logits.double().sum()) == pytest.approx(-37325.117, rel=1e-6)
    assert float(output.encoder.boxes.double().sum()) == pytest.approx(419.2879, rel=1e-6)
    assert output.encoder.boxes[1, -1].tolist() == [1, 1, 1, 1]  # a token of the padding
    expected = (0.956876, 0.999144, 0.999153, 0.997774)
    assert output.last.boxes[1, -1].tolist() == pytest.approx(expected, abs=1e-5)
