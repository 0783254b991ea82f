"""The check of many timm models, on a few."""

import random

import pytest
from helpers.scripts import load_script

script = load_script("check_backbones")


def test_a_sample_of_the_models_trains_and_predicts_or_is_refused() -> None:
    for case in random.Random(2004).sample(script.CASES, 3):
        ending = script.check(case)
        assert ending.is_good, f"{case.name}: {ending.text}"


def test_the_list_has_enough_models() -> None:
    names = [case.name for case in script.CASES]
    assert len(set(names)) == len(names) >= 40
    assert len({case.family for case in script.CASES}) >= 20


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (script.Case("none", "test_vit"), "ValueError: model.backbone.out_strides"),
        (script.Case("none", "no_such_model"), "ValueError: timm model must be one of"),
    ],
)
def test_any_other_end_is_wrong(
    case: script.Case,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "CASES", (case,))
    assert script.main([]) == 1
    out = capsys.readouterr().out
    assert f"| **wrong** {text}" in out
    assert "1 models of 1 families, 1 wrong" in out


def test_a_parameter_without_gradient_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    case = script.Case("none", "test_resnet")
    build = script._build

    def with_one_more(case: script.Case) -> script.DeformableDETR:
        model = build(case)
        model.backbone.register_parameter("spare", script.torch.nn.Parameter(script.torch.zeros(1)))
        return model

    assert script.check(case).text == "trains and predicts"
    monkeypatch.setattr(script, "_build", with_one_more)
    assert script.check(case).text == "no gradient: backbone.spare"
