import pytest
import torch
from torch import Tensor

from deformable_detr.benchmark.ops import implementations
from deformable_detr.benchmark.ops.calls import BoundImplementation, check_agreement
from deformable_detr.benchmark.ops.implementations import (
    REFERENCE,
    TRANSFORMERS,
    Implementation,
    find_implementations,
)
from deformable_detr.benchmark.ops.workload import Shape, make_workload
from deformable_detr.ops import available_backends
from deformable_detr.ops.ms_deformable_attention.reference import ms_deform_attn_core_pytorch

SMALL = Shape("small", ((9, 7), (5, 4)), N=2, M=2, D=4, P=2)


def names(found: list[Implementation]) -> set[str]:
    return {implementation.name for implementation in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_available_implementations_agree(dtype: torch.dtype) -> None:
    found, _ = find_implementations("cpu", dtype)
    workload = make_workload(SMALL)

    check_agreement([BoundImplementation(implementation, workload) for implementation in found])


def test_implementation_that_disagrees_is_not_timed() -> None:
    def wrong(value: Tensor, *others: object) -> Tensor:
        return ms_deform_attn_core_pytorch(value, *others) + 1e-3  # type: ignore[arg-type]

    workload = make_workload(SMALL)
    bound = [
        BoundImplementation(Implementation(name, function, torch.float32), workload)
        for name, function in ((REFERENCE, ms_deform_attn_core_pytorch), ("other", wrong))
    ]

    with pytest.raises(RuntimeError, match=r"^other must agree with the reference to .* 0\.001;"):
        check_agreement(bound)


def test_nan_is_a_disagreement() -> None:
    workload = make_workload(SMALL)

    def broken(value: Tensor, *others: object) -> Tensor:
        return torch.full((SMALL.N, SMALL.S, SMALL.M * SMALL.D), torch.nan)

    bound = [
        BoundImplementation(Implementation(name, function, torch.float32), workload)
        for name, function in ((REFERENCE, ms_deform_attn_core_pytorch), ("other", broken))
    ]

    with pytest.raises(RuntimeError, match="difference of nan"):
        check_agreement(bound)


def test_missing_library_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementations.importlib.util, "find_spec", lambda name: None)

    found, missing = find_implementations("cpu", torch.float32)

    assert TRANSFORMERS not in names(found)
    assert missing[TRANSFORMERS] == "it is not installed; pip install transformers"


def test_native_is_found_exactly_if_its_backend_is_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = available_backends("cpu")["native"]
    found, missing = find_implementations("cpu", torch.float32)
    assert missing.get("native", "") == reason
    assert {"native", "native fused", "native bfloat16"} & names(found) == (
        set() if reason else {"native", "native fused", "native bfloat16"}
    )

    monkeypatch.setattr(
        implementations, "available_backends", lambda device: {"native": "not built"}
    )
    found, missing = find_implementations("cpu", torch.float32)
    assert missing["native"] == "not built"
    assert not any(name.startswith("native") for name in names(found))


def test_low_precision_has_no_second_row_in_bfloat16() -> None:
    found, missing = find_implementations("cpu", torch.bfloat16)

    assert not any("bfloat16" in name for name in names(found))
    assert {implementation.dtype for implementation in found} == {torch.bfloat16}
    assert TRANSFORMERS in missing


def test_backward_computes_gradients_of_value_points_and_weights() -> None:
    workload = make_workload(SMALL)
    gradients = {}
    for implementation in find_implementations("cpu", torch.float32)[0]:
        if implementation.dtype == torch.float32 and not implementation.is_fused:
            (call,) = BoundImplementation(implementation, workload).prepare("backward", 1)
            gradients[implementation.name] = call()

    expected = gradients.pop(REFERENCE)
    assert isinstance(expected, tuple)
    shapes = [tuple(gradient.shape) for gradient in expected]
    assert shapes == [
        tuple(tensor.shape)
        for tensor in (workload.value, workload.sampling_locations, workload.attention_weights)
    ]
    assert gradients
    for others in gradients.values():
        torch.testing.assert_close(others, expected)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_requested_number_of_calls_is_prepared(direction: str) -> None:
    made = []

    def function(value: Tensor, *others: object) -> Tensor:
        made.append(value.requires_grad)
        return ms_deform_attn_core_pytorch(value, *others)  # type: ignore[arg-type]

    bound = BoundImplementation(
        Implementation("one", function, torch.float32), make_workload(SMALL)
    )
    calls = bound.prepare(direction, 3)  # type: ignore[arg-type]

    assert len(calls) == 3
    # One warm-up call; then one graph per backward call, and none for forward.
    assert made == ([False] if direction == "forward" else [True] * 4)
    for call in calls:
        call()
    assert len(made) == 4
