import pytest
import torch

from deformable_detr.benchmark import layers
from deformable_detr.benchmark.layers import Pair, deform_pairs, fused_pairs, kernel_pair


@pytest.mark.parametrize(("pairs", "count"), [("deform", 4), ("kernel", 1), ("fused", 2)])
def test_calls_of_a_pair_agree(pairs: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "DEFORM_SHAPES", ((8, 5, 6),))
    monkeypatch.setattr(layers, "KERNEL_SHAPE", (8, 5, 6))
    match pairs:
        case "deform":
            made = list(deform_pairs())
        case "kernel":
            made = [kernel_pair()]
        case _:
            made = list(fused_pairs(depth=18, size=64))
    assert len(made) == count
    for pair in made:
        wanted = pair.other()
        assert wanted.std() > 0
        assert (pair.own() - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_calls_of_a_pair_are_interleaved_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def work(name: str, size: int) -> torch.Tensor:
        calls.append(name)
        matrix = torch.ones(size, size)
        return matrix @ matrix

    pair = Pair("this", lambda: work("own", 700), lambda: work("other", 70), limit=1)
    monkeypatch.setattr(layers, "deform_pairs", list)
    monkeypatch.setattr(layers, "kernel_pair", lambda: pair)
    monkeypatch.setattr(layers, "fused_pairs", list)
    messages: list[str] = []
    (found,) = layers.measure(2, messages.append)
    assert messages[-1].startswith("this: round 2 of 2")
    assert {"own", "other"} == set(calls)
    assert found.ratio.median > 1
    assert found.own_ms.median > found.other_ms.median
    assert not found.holds
