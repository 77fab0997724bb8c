"""Euclidean projections of batched tensors: l1 ball, l2 ball, sphere.

The first axis of a tensor is the image; no image influences another. The functions keep no gradient and may return
their (detached) argument itself where nothing changes, so write ``parameter.copy_(project_…(parameter, …))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 4096  # coordinates summed in the working precision before float64 takes over; float32 counts them exactly


@torch.no_grad()
def project_l1_ball(x: Tensor, radius: float | Tensor, center: Tensor | None = None) -> Tensor:
    """The nearest point of the l1 ball ``{z: ‖z − center‖₁ <= radius}``, for each image.

    The projection soft-thresholds ``d = x − center``: ``z = center + sign(d)·max(|d| − τ, 0)`` with the τ for which
    the l1 norm is the radius (Duchi et al. 2008, "Efficient projections onto the l1-ball", section 4). τ is found by
    Newton's method on ``Σ max(|d| − τ, 0) = radius``, which is Michelot's fixed point (Condat 2016, "Fast projection
    onto the simplex and the l1 ball", section 3): from a lower bound of τ it only grows, the set of coordinates above
    it only shrinks, and once the set stays the same τ is exact. No sort; some 5–10 iterations on normal data.

    Args:
        x: ``(B, ...)``, floating point; all other axes of an image together are its vector. float16 and bfloat16 are
            computed in float32. Coordinates up to about 1e34 in float32.
        radius: ``>= 0``, one number or ``(B,)``. Zero gives the centre, infinity leaves the image alone.
        center: broadcastable to ``x``; ``None`` is the origin.

    Returns:
        Same shape, dtype and memory format as ``x``, without history. Images inside the ball are returned bit for
        bit; when all are, the result shares the memory of ``x``. An image that contains NaN, or infinities that a
        finite radius excludes, is NaN everywhere; the others don't notice.

    Raises:
        ValueError: if a radius is negative or NaN, or there isn't one per image.
    """
    radii = _radii(radius, x)
    if x.numel() == 0:
        return x.detach()
    if x.ndim == 1:
        column = None if center is None else center.reshape(-1, 1)
        return project_l1_ball(x.unsqueeze(1), radii, column).squeeze(1)

    # (B, n) views in memory order, so that every pass streams, whatever the memory format
    distance = _offset(x, center).abs()
    size, order = distance.shape, _memory_order(distance)
    magnitude = distance.permute(order).reshape(len(x), -1)
    norm = _sum(magnitude)
    inside = norm <= radii
    if inside.all():
        return x.detach()
    radii = radii.masked_fill(inside, 0.0)  # harmless stand-in; these images are put back at the end

    # τ = peak − gap. The gap is what Newton iterates on: where the radius is tiny against the coordinates, τ rounds
    # to the peak, while the gap still holds the answer. Both bounds of the gap follow from Σ max(gap − (peak − |d|), 0)
    # = radius; the factor covers the rounding of the mean.
    peak = magnitude.amax(dim=1).double()
    n = magnitude.shape[1]
    gap = torch.minimum(radii, radii / n + peak * (1 + 1e-12) - norm / n)
    excess = torch.empty_like(magnitude)
    support = torch.full_like(gap, -1)
    while True:
        _soft_threshold(magnitude, peak, gap, out=excess)
        total = _sum(excess)
        previous, support = support, _sum(excess.sign_())
        shrinking = support != previous
        if not shrinking.any():
            break
        newton = torch.minimum(gap, gap - (total - radii) / support.clamp(min=1))
        gap = torch.where(shrinking, newton, gap)
    _soft_threshold(magnitude, peak, gap, out=excess)

    shape = [size[axis] for axis in order]
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    z = excess.view(shape).permute(inverse)
    z.copysign_(_offset(x, center))
    if center is not None:
        z.add_(center)
    z = z.to(x.dtype)
    return torch.where(_per_image(inside, x), x, z) if inside.any() else z


@torch.no_grad()
def project_l2_ball(x: Tensor, radius: float | Tensor, center: Tensor | None = None) -> Tensor:
    """The nearest point of the l2 ball ``{z: ‖z − center‖₂ <= radius}``, for each image.

    Args:
        x: ``(B, ...)``, floating point; all other axes of an image together are its vector.
        radius: ``>= 0``, one number or ``(B,)``. Zero gives the centre, infinity leaves the image alone.
        center: broadcastable to ``x``; ``None`` is the origin.

    Returns:
        As for `project_l1_ball`: same shape, dtype and format; images inside the ball bit for bit; NaN stays in its
        image. Norms neither overflow nor underflow.

    Raises:
        ValueError: if a radius is negative or NaN, or there isn't one per image.
    """
    radii = _radii(radius, x)
    if x.numel() == 0:
        return x.detach()
    if x.ndim == 1:
        column = None if center is None else center.reshape(-1, 1)
        return project_l2_ball(x.unsqueeze(1), radii, column).squeeze(1)

    axes = tuple(range(1, x.ndim))
    difference = _offset(x, center)
    unit, peak, length = _scaled(difference, axes)  # difference = unit · peak, ‖unit‖ = length
    norm = torch.where(peak.isinf(), math.inf, peak.double() * length).flatten()
    inside = norm <= radii
    if inside.all():
        return x.detach()
    scale = _per_image(radii.masked_fill(inside, 0.0), x) / length
    z = unit.mul_(scale.to(unit.dtype))
    if center is not None:
        z.add_(center)
    z = z.to(x.dtype)
    return torch.where(_per_image(inside, x), x, z) if inside.any() else z


@torch.no_grad()
def project_sphere(x: Tensor, radius: float | Tensor, dims: int | Sequence[int]) -> Tensor:
    """Scale every vector along ``dims`` to the l2 norm ``radius``: the nearest point of the sphere.

    Args:
        x: ``(B, ...)``, floating point.
        radius: ``>= 0`` and finite, one number or ``(B,)``.
        dims: the axes that form one vector; the remaining axes enumerate vectors.

    Returns:
        Same shape, dtype and memory format as ``x``, without history. Zero vectors have no direction and stay zero;
        vectors with NaN or infinity become NaN. Norms neither overflow nor underflow.

    Raises:
        ValueError: if a radius is negative, infinite or NaN, or there isn't one per image.
    """
    radii = _radii(radius, x)
    if torch.isinf(radii).any():
        raise ValueError(f"the radius of a sphere must be finite, got {radius}")
    if x.numel() == 0:
        return x.detach()
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    unit, _, length = _scaled(_offset(x, None), axes)
    scale = _per_image(radii, x) / length
    return (unit * scale.to(unit.dtype)).to(x.dtype)


def _radii(radius: float | Tensor, x: Tensor) -> Tensor:
    """One checked float64 radius per image, ``(B,)``."""
    if x.ndim == 0:
        raise ValueError("the first axis of the tensor must be the image, got a tensor without axes")
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device)
    if radii.ndim > 1 or (radii.ndim == 1 and len(radii) != len(x)):
        raise ValueError(
            f"radius must be one number or one per image, ({len(x)},); got a tensor of shape {tuple(radii.shape)}"
        )
    if not (radii >= 0).all():
        raise ValueError(f"radius must be >= 0 (infinity for no constraint), got {radius}")
    return radii.expand(len(x))


def _offset(x: Tensor, center: Tensor | None) -> Tensor:
    """``x − center``, at least in float32. Not a copy without a centre: don't write to it."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    return x if center is None else x - center


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, …)``, to combine with ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _memory_order(x: Tensor) -> list[int]:
    """The axes by decreasing stride, image first."""
    return [0, *sorted(range(1, x.ndim), key=lambda axis: -x.stride(axis))]


def _sum(rows: Tensor) -> Tensor:
    """Row sums of ``(B, n)`` in float64. Float32 does the short blocks, ten times faster than casting everything."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    rest = rows[:, whole:].sum(dim=1, dtype=torch.float64)
    if not whole:
        return rest
    return rows[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=2).sum(dim=1, dtype=torch.float64) + rest


def _soft_threshold(magnitude: Tensor, peak: Tensor, gap: Tensor, out: Tensor) -> None:
    """``max(magnitude − τ, 0)`` with ``τ = peak − gap``, to relative (not absolute) precision.

    τ is split into two numbers of the working precision: ``magnitude − high`` is exact near the threshold, so the
    many coordinates barely above it don't lose the digits that make up the norm.
    """
    high = (peak - gap).to(magnitude.dtype)
    low = ((peak - high.double()) - gap).to(magnitude.dtype)
    torch.sub(magnitude, high.unsqueeze(1), out=out).sub_(low.unsqueeze(1)).clamp_(min=0)


def _scaled(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """``x / peak``, the largest magnitude ``peak``, and the float64 l2 norm of ``x / peak``; 1 for zero vectors."""
    peak = torch.maximum(x.amax(dim=axes, keepdim=True), -x.amin(dim=axes, keepdim=True))
    divisor = torch.where(peak == 0, torch.ones_like(peak), peak)
    unit = x / divisor
    length = unit.square().sum(dim=axes, keepdim=True).double().sqrt()
    return unit, peak, torch.where(peak == 0, torch.ones_like(length), length)
