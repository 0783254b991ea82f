import pytest
import torch
from torch import nn

from deformable_detr import distributed


def test_a_single_process_is_rank_0_of_a_world_of_size_1() -> None:
    distributed.start(torch.device("cpu"))
    assert not distributed.is_started()
    assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.is_main()
    distributed.barrier()
    distributed.stop()


def test_reduce_and_gather_in_a_single_process_return_its_value() -> None:
    value = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce_sum(value).equal(value)
    assert distributed.all_gather_objects({"a": 1}) == [{"a": 1}]


def test_a_single_process_is_not_wrapped() -> None:
    model = nn.Linear(2, 2)
    assert distributed.wrap_ddp(model) is model
    with distributed.gradient_sync(model, enabled=False):
        model(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad is not None


def test_main_first_runs_the_block_and_propagates_errors() -> None:
    with pytest.raises(KeyError, match="inside"), distributed.main_first():
        raise KeyError("inside")


def test_a_value_or_an_error_of_the_main_process_is_that_of_a_single_one() -> None:
    assert distributed.from_main(lambda: {"a": 1}) == {"a": 1}
    cause = KeyError("cause")
    with pytest.raises(ValueError, match="inside") as caught:
        distributed.from_main(lambda: _raise(ValueError("inside"), cause))
    assert caught.value.__cause__ is cause


def _raise(error: Exception, cause: Exception) -> None:
    raise error from cause


def test_the_cpu_can_always_be_chosen() -> None:
    assert distributed.choose_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_unless_the_device_is_auto() -> None:
    assert distributed.choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(RuntimeError, match="cuda:0 is not available here, PyTorch sees 0 GPUs"):
        distributed.choose_device("cuda")


@pytest.mark.parametrize(
    "name", ["gpu", "", "meta", "xpu", "cuda:300", "cuda:-1", f"cuda:{10**30}", "cpu:1000000"]
)
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device must be auto, cpu, .* got '{name[:9]}"):
        distributed.choose_device(name)


def test_a_launcher_needs_a_device_that_can_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="must be cpu or cuda under a launcher, got mps"):
        distributed.start(torch.device("mps"))
