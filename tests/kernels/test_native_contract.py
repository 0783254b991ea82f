"""Native CPU operators: guarantees other than numerical exactness."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from helpers.operator_calls import FORMS, random_call, requires_native
from torch import nn
from torch.autograd import forward_ad

from deformable_detr.benchmark.memory import peak_extra_megabytes
from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.ops import ms_deform_attn, ms_deform_attn_fused

pytestmark = requires_native

GIB = 2**30


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def references(request):
    return request.param


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", ["N", "Q", "M", "D", "P"])
def test_empty_sizes_give_zeros(size, references):
    call = random_call(references=references, **{size: 0})
    output, *gradients = call.run_with_gradients("native")
    assert output.shape == call.grad_output.shape
    assert (output == 0).all()
    for gradient, tensor in zip(gradients, call.tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


def test_levels_without_cells_give_zeros(references):
    call = random_call(references=references, levels=((0, 3), (4, 0)), L=2)
    output, *gradients = call.run_with_gradients("native")
    assert output.shape == call.grad_output.shape
    assert all((tensor == 0).all() for tensor in (output, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_in_memory_does_not_matter(dtype, references):
    call = random_call(dtype, references=references)

    def strided(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    other = replace(
        call,
        tensors=tuple(strided(tensor) for tensor in call.tensors),
        grad_output=strided(call.grad_output),
    )
    results = zip(
        call.run_with_gradients("native"), other.run_with_gradients("native"), strict=True
    )
    assert all(torch.equal(expected, actual) for expected, actual in results)


@pytest.mark.parametrize("Q", [5, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bitwise_the_same_for_any_number_of_threads_and_in_every_run(
    dtype, Q, references, two_threads
):
    call = random_call(dtype, N=2, M=4, D=32, Q=Q, L=3, references=references)
    torch.set_num_threads(1)
    expected = call.run_with_gradients("native")
    torch.set_num_threads(2)
    for _ in range(100):
        actual = call.run_with_gradients("native")
        assert all(map(torch.equal, expected, actual))


def test_deterministic_algorithms_change_nothing_on_a_cpu(references):
    call = random_call(Q=50, references=references)
    expected = call.run_with_gradients("native")
    torch.use_deterministic_algorithms(True)
    try:
        actual = call.run_with_gradients("native")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, expected, actual))


@pytest.mark.parametrize("D", [3, 32])
def test_gradients_equal_finite_differences(D, references):
    call = random_call(torch.float64, N=1, Q=3, M=2, D=D, L=2, P=2, references=references)
    tensors = tuple(tensor.requires_grad_() for tensor in call.tensors)
    assert torch.autograd.gradcheck(
        lambda *tensors: replace(call, tensors=tensors).run("native"), tensors, fast_mode=D > 3
    )


@pytest.mark.parametrize("number", range(4))
def test_gradients_do_not_depend_on_the_requested_ones(number):
    call = random_call(references=4)
    expected = call.run_with_gradients("native")[1 + number]
    tensors = [tensor.clone() for tensor in call.tensors]
    tensors[number].requires_grad_()
    output = replace(call, tensors=tuple(tensors)).run("native")
    (actual,) = torch.autograd.grad(output, tensors[number], call.grad_output)
    assert torch.equal(actual, expected)


def test_a_second_derivative_raises(references):
    call = random_call(references=references)
    tensors = tuple(tensor.requires_grad_() for tensor in call.tensors)
    output = replace(call, tensors=tensors).run("native")
    (gradient,) = torch.autograd.grad(output.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once, not twice"):
        gradient.sum().backward()


def of_value(call):
    return lambda value: replace(call, tensors=(value, *call.tensors[1:])).run("native")


def test_a_level_without_cells_takes_no_memory_for_its_other_side():
    call = random_call(levels=((0, 8_000_000), (2, 2)))
    extra = peak_extra_megabytes(lambda: call.run("native"), device="cpu")
    if extra is None:
        pytest.skip("peak memory is not available on this platform")
    assert extra < 100


# PyTorch warns of its own use of torch.jit.script when forward mode is first used.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.jacrev])
def test_unsupported_derivatives_raise(references, transform):
    call = random_call(references=references)
    with pytest.raises(NotImplementedError, match=r"ms_deform_attn.* (forward-mode|torch\.func)"):
        transform(of_value(call))(call.tensors[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_tangent_is_never_dropped(references):
    call = random_call(references=references)
    value = call.tensors[0]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        of_value(call)(forward_ad.make_dual(value, value))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_a_tangent_is_not_dropped_by_the_compiler_either(references):
    call = random_call(references=references)
    value = call.tensors[0]

    @torch.compile(backend="eager")
    def derivative(value):
        return torch.func.jvp(of_value(call), (value,), (value,))[1]

    with pytest.raises(NotImplementedError, match="forward-mode"):
        derivative(value)


def flat(level_shapes):
    return [size for shape in level_shapes for size in shape]


# opcheck reads the gradients of its own copies.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_registrations_pass_opcheck(dtype, references):
    call = random_call(dtype, references=references)
    value, *others = call.tensors
    name = "ms_deform_attn_fused" if call.is_fused else "ms_deform_attn"
    forward = getattr(torch.ops.deformable_detr, name).default
    backward = getattr(torch.ops.deformable_detr, f"{name}_backward").default
    arguments = (value, flat(call.level_shapes), *others)
    torch.library.opcheck(forward, arguments)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in call.tensors)
    torch.library.opcheck(forward, (inputs[0], flat(call.level_shapes), *inputs[1:]))
    flags = [(False,)] if not call.is_fused else [(True, False), (False, False)]
    for flag in flags:
        torch.library.opcheck(backward, (call.grad_output, *arguments, *flag))


def test_one_graph_works_for_three_image_sizes(references):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def call_operator(value, level_shapes, *others):
        operator = ms_deform_attn if references is None else ms_deform_attn_fused
        return operator(value, level_shapes, *others, backend="native")

    torch._dynamo.reset()
    compiled = torch.compile(call_operator, fullgraph=True, dynamic=True, backend=counter)
    for levels in (((12, 16), (6, 8)), ((10, 14), (5, 7)), ((8, 22), (4, 11))):
        Q = sum(height * width for height, width in levels)
        call = random_call(levels=levels, L=2, Q=Q, references=references)
        value, *others = call.tensors
        actual = compiled(value, levels, *others)
        torch.testing.assert_close(actual, call.run("native"))
    assert counter.frame_count == 1


class TwoMaps(nn.Module):
    """An encoder's attention over two maps, whose sizes are those of its inputs."""

    def __init__(self):
        super().__init__()
        self.attention = MSDeformAttn(16, num_heads=2, num_levels=2, num_points=2)

    def forward(self, fine, coarse):
        maps = (fine, coarse)
        level_shapes = tuple((each.shape[2], each.shape[3]) for each in maps)
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)
        references = tokens.new_full((*tokens.shape[:2], 2, 2), 0.4)
        padding_mask = torch.zeros_like(tokens[..., 0], dtype=torch.bool)
        return self.attention(tokens, references, tokens, level_shapes, padding_mask)


def two_maps(height, width):
    return torch.randn(1, 16, 2 * height, 2 * width), torch.randn(1, 16, height, width)


def test_training_compiles_once_for_three_image_sizes():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = TwoMaps()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for size in ((4, 5), (6, 7), (3, 9)):
        maps = two_maps(*size)
        for each in maps:
            torch._dynamo.mark_dynamic(each, (2, 3))
        compiled(*maps).square().sum().backward()
        actual = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        model(*maps).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), actual, strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
        model.zero_grad()
    assert counter.frame_count == 1


def test_an_exported_program_works_for_other_image_sizes():
    model = TwoMaps().eval()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(
        model, two_maps(4, 5), dynamic_shapes=({2: auto, 3: auto}, {2: auto, 3: auto})
    )
    targets = [str(node.target) for node in program.graph.nodes]
    assert "deformable_detr.ms_deform_attn_fused.default" in targets
    maps = two_maps(6, 3)
    torch.testing.assert_close(program.module()(*maps), model(*maps))


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(),
    reason="needs a system that provides huge pages on request",
)
def test_a_large_result_uses_huge_pages():
    import resource  # not available on Windows

    call = random_call(N=1, M=8, D=32, Q=40_000, L=1, P=1)
    call.run("native")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    output = call.run("native")
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pages = output.nbytes // resource.getpagesize()
    assert output.nbytes > 32 * 2**20
    assert faults < pages / 4


def free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(free_memory() < 14 * GIB, reason="needs 14 GiB of free memory")
@pytest.mark.parametrize("Q", [1, 40_000])
def test_a_value_of_more_than_2_to_the_31_elements(Q):
    """The last head of the last cells is sampled, past any 32-bit offset."""
    height, M, D = 512, 8, 1040
    width = 2**31 // (height * M * D) + 1
    value = torch.zeros(1, height * width, M, D, dtype=torch.float16)
    assert value.numel() > 2**31
    corner = torch.randn(2, 2, M, D).half()
    value.view(height, width, M, D)[-2:, -2:] = corner
    center = torch.tensor([(width - 0.75) / width, (height - 0.75) / height])
    locations = center.expand(1, Q, M, 1, 1, 2).contiguous()
    weights = torch.ones(1, Q, M, 1, 1)
    small = torch.zeros(1, 4, M, D, dtype=torch.float16)
    small[:] = corner.view(1, 4, M, D)
    expected = ms_deform_attn(
        small, ((2, 2),), torch.full_like(locations, 1.25 / 2), weights, backend="reference"
    )
    actual = ms_deform_attn(value, ((height, width),), locations, weights, backend="native")
    torch.testing.assert_close(actual, expected, rtol=2**-10, atol=2**-10)
