"""styled_act: the kernels against torch, in bands and as a whole."""

from __future__ import annotations

import pytest
import torch

from ilo_lightning.ops import styled_act, use

SHAPES = [(2, 5, 6, 7), (1, 43, 40, 41), (3, 8, 1, 1), (1, 512, 9, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("clamp", [None, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_agree_with_torch(
    shape: tuple[int, ...], clamp: float | None, noisy: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(styled_act, "BAND_BYTES", 1 << 12)
    rng = torch.Generator().manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng, dtype=dtype)

    x, grad = (randn(*shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    bias, noise, scale = randn(shape[1]), randn(shape[0], 1, *shape[2:]), randn(*shape[:2])
    results = []
    for impl in ("torch", "cpu"):
        with use(impl):
            y = x.clone()
            given = (scale if noisy else None, bias, noise if noisy else None)
            styled_act.styled_act_(y, *given, 0.2, clamp)
            inner, total, grad_noise = styled_act.styled_act_backward(grad, y, *given, 0.2, clamp)
            grad_x = inner.clone()
            grad_style = styled_act.style_backward_(grad_x, x, scale)
            # a gradient in another layout
            again = styled_act.styled_act_backward(grad.contiguous(), y, *given, 0.2, clamp)[0]
            results.append((y, inner, total, grad_noise, grad_x, grad_style, again))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10  # sums of up to 1640 numbers
    torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=tolerance)


def test_other_layouts_are_refused():
    with use("cpu"), pytest.raises(RuntimeError, match="channels_last"):
        styled_act.styled_act_(torch.zeros(1, 3, 4, 4), None, torch.zeros(3), None, 0.2, None)


@pytest.mark.parametrize("clamp", [None, 0.7])
def test_other_devices_get_the_same_by_bias_act(clamp):
    """What GPUs run, here on the CPU."""
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(2, 8, 6, 5, generator=rng, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    scale, bias = torch.rand(2, 8, generator=rng, dtype=torch.float64), torch.randn(8, generator=rng).double()
    noise = torch.randn(2, 1, 6, 5, generator=rng, dtype=torch.float64)
    for arguments in ((scale, bias, noise), (None, bias, None)):
        expected, found = x.clone(), x.clone()
        styled_act.styled_act_(expected, *arguments, 0.2, clamp)
        styled_act._with_bias_act(found, *arguments, 0.2, clamp)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert found.is_contiguous(memory_format=torch.channels_last)
