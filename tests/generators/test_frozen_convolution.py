"""A layer with frozen weights computes what the same layer computes with trainable ones: values and all gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ilo_lightning.generators import frozen_convolution
from ilo_lightning.generators.base import LatentPoint
from ilo_lightning.generators.stylegan2 import StyleGAN2
from ilo_lightning.generators.stylegan2_layers import StyledConv, fir_kernel
from ilo_lightning.ops import styled_act, use
from tests.networks import rngs, small_stylegan2

Case = tuple[StyledConv, list[Tensor], Tensor]
"""A frozen layer; x, style, noise; the FIR kernel."""


def case(up: bool, batch: int = 2, clamp: float | None = None, gain: float = 1.0, taps=(1, 3, 3, 1), size=6) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = StyledConv(3, 4, 5, up, gain=gain, clamp=clamp).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        side = 2 * size if up else size
        shapes = (batch, 3, size, size), (batch, 3), (batch, 1, side, side)
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return layer.requires_grad_(False), inputs, fir_kernel(4.0, taps).double()


CASES: dict[str, Callable[[], Case]] = {
    "same size": lambda: case(up=False),
    "up": lambda: case(up=True),
    "odd filter": lambda: case(up=True, taps=(1, 2, 1)),
    "skew filter": lambda: case(up=True, taps=(1, 2, 0)),
    "clamped": lambda: case(up=True, clamp=0.7, gain=0.6),
    "one image": lambda: case(up=False, batch=1),
    "one large image": lambda: case(up=False, batch=1, size=12),  # more pixels than weights
    "one large image, up": lambda: case(up=True, batch=1, size=9),
}


@pytest.fixture(params=["direct", "winograd", "kernels"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to convolve, in torch with bands so thin that there are several, the last with fewer rows; and with the
    compiled kernels."""
    monkeypatch.setattr(styled_act, "BAND_BYTES", 5 * 4 * 6 * 8 * 2)
    if request.param == "winograd":
        monkeypatch.setattr(frozen_convolution, "WINOGRAD_CHANNELS", 1)
        monkeypatch.setattr(frozen_convolution, "WINOGRAD_PIXELS", 1)
    with use("cpu" if request.param == "kernels" else "torch"):
        yield request.param


def trainable(layer: StyledConv) -> StyledConv:
    """The same layer, on PyTorch's own differentiation."""
    return copy.deepcopy(layer).requires_grad_(True)


def gradients(layer: StyledConv, inputs: list[Tensor], fir: Tensor, free: list[bool]) -> list[Tensor]:
    """The output, and the gradients of what is free, of a fixed function of the output."""
    inputs = [tensor.clone().requires_grad_(wanted) for tensor, wanted in zip(inputs, free, strict=True)]
    out = layer(*inputs, fir)
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    return [out, *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("free", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_trainable_weights(name: str, free: tuple[int, ...], method: str):
    layer, inputs, fir = CASES[name]()
    wanted = [bool(each) for each in free]
    ours, expected = (gradients(each, inputs, fir, wanted) for each in (layer, trainable(layer)))
    assert len(ours) == 1 + sum(free)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gradients(name: str, method: str):
    layer, inputs, fir = CASES[name]()
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *given: layer(*given, fir), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *given: layer(*given, fir), inputs, fast_mode=True)


def test_without_noise(method: str):
    layer, (x, style, _), fir = case(up=False)
    ours, expected = (each(x, style, None, fir) for each in (layer, trainable(layer)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def in_place(layer: StyledConv) -> None:
    layer.weight.square_()  # not a multiple of itself: the demodulation would undo that


def load(layer: StyledConv) -> None:
    layer.load_state_dict({**layer.state_dict(), "weight": layer.weight.square()})


def assign(layer: StyledConv) -> None:
    layer.load_state_dict({**layer.state_dict(), "weight": layer.weight.square()}, assign=True)


def replace(layer: StyledConv) -> None:
    layer.weight = nn.Parameter(layer.weight.square(), requires_grad=False)


def swap(layer: StyledConv) -> None:
    layer.weight.data = layer.weight.data.square()


def learn(layer: StyledConv) -> None:
    layer.requires_grad_(True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for tensor in layer.parameters():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    layer.requires_grad_(False)


def bias(layer: StyledConv) -> None:
    layer.bias.add_(1)


def strength(layer: StyledConv) -> None:
    assert layer.noise_strength is not None
    layer.noise_strength.add_(1)


@pytest.mark.parametrize("change", [in_place, load, assign, replace, swap, learn, bias, strength])
@pytest.mark.parametrize("up", [False, True])
def test_changed_weights_count(change: Callable[[StyledConv], None], up: bool, method: str):
    layer, inputs, fir = case(up)
    before = layer(*inputs, fir)
    change(layer)
    after = layer(*inputs, fir)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, trainable(layer)(*inputs, fir), rtol=0, atol=1e-10)


def test_other_precision(method: str):
    layer, inputs, fir = case(up=False)
    expected = layer(*inputs, fir)
    ours = layer.float()(*(tensor.float() for tensor in inputs), fir.float())
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4)


def test_copies_and_pickles_hold_the_weights_alone():
    layer, inputs, fir = case(up=False)
    fresh = len(pickle.dumps(layer))
    out = layer(*inputs, fir)
    assert len(pickle.dumps(layer)) == fresh
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._frozen is None
        assert torch.equal(twin(*inputs, fir), out)


def test_weights_of_inference_mode():
    layer, inputs, fir = case(up=True)
    expected = layer(*inputs, fir)
    with torch.inference_mode():
        twin = copy.deepcopy(layer)
        torch.testing.assert_close(twin(*inputs, fir), expected, rtol=0, atol=1e-11)


def test_mixed_precision():
    """Autocast changes types between forward and backward; such layers are PyTorch's."""
    generator = small_stylegan2(16, torch.float32)
    point = generator.sample(rngs(0)).map(lambda tensor: tensor.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(point)
    image.float().square().mean().backward()
    assert (image - generator(point)).abs().max() < 0.1 * image.std()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in point.tensors.values())


def kept_for_backward(generator: StyleGAN2, point: LatentPoint) -> int:
    """Bytes of the distinct tensors that a forward pass keeps, without the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in generator.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        generator(point)
    return sum(kept.values())


def test_each_activation_is_kept_once():
    generator = StyleGAN2(64, [16] * 5, style_dim=8, mapping_depth=1).requires_grad_(False)
    generator = generator.to(memory_format=torch.channels_last)
    point = generator.sample(rngs(0)).map(lambda tensor: tensor.requires_grad_())
    activations = sum(4 * 16 * side**2 * (1 if side == 4 else 2) for side in (4, 8, 16, 32, 64))
    kept = kept_for_backward(generator, point)
    assert activations <= kept < 1.2 * activations
    generator.recompute = True
    assert kept_for_backward(generator, point) < 0.5 * kept


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_recomputing_changes_nothing(architecture: str, layer: int):
    generator = small_stylegan2(32, architecture=architecture)
    point = generator.advance(generator.sample(rngs(0, 1)), layer).map(lambda tensor: tensor.requires_grad_())
    results = []
    for generator.recompute in (False, True):
        image = generator(point)
        results.append([image, *torch.autograd.grad(image.square().sum(), list(point.tensors.values()))])
    assert all(map(torch.equal, *results))
