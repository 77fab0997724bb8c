"""Euclidean projections of batched tensors: l1 ball, l2 ball, sphere, simplex.

The first axis of a tensor is the image; no image influences another. The functions keep no gradient and may return
their (detached) argument itself where nothing changes, so write ``parameter.copy_(project_…(parameter, …))``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .ops.l1_ball import l1_shrink, l1_threshold


@torch.no_grad()
def project_l1_ball(x: Tensor, radius: float | Tensor, center: Tensor | None = None) -> Tensor:
    """The nearest point of the l1 ball ``{z: ‖z − center‖₁ <= radius}``, for each image.

    By Newton's method on the soft threshold, without sorting (see `ilo_lightning.ops.l1_ball`): exact after some 5–10
    passes over the coordinates of normal data, fewer where compiled kernels do it.

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
    order = _memory_order(x)
    rows = _working(x).permute(order).reshape(len(x), -1)
    if center is not None:
        center = center.to(rows.dtype).expand_as(x).permute(order).reshape(len(x), -1)
    threshold = l1_threshold(rows, radii, center)
    inside = threshold[:, 1] == math.inf
    if inside.all():
        return x.detach()
    z = l1_shrink(rows, threshold, center).to(x.dtype)
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return z.view([x.shape[axis] for axis in order]).permute(inverse)


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


@torch.no_grad()
def project_simplex(x: Tensor, support: Tensor | None = None) -> Tensor:
    """The nearest point of the probability simplex, ``>= 0`` with sum 1, for each row (Held, Wolfe & Crowder 1974).

    Args:
        x: ``(B, n)``, finite.
        support: ``(B, n)``: entries outside of it stay 0; None: all may be more. Rows without any are 0.
    """
    support = torch.ones_like(x, dtype=torch.bool) if support is None else support
    ordered = x.masked_fill(~support, -torch.inf).sort(dim=1, descending=True).values
    excess = ordered.masked_fill(ordered.isinf(), 0.0).cumsum(dim=1) - 1
    counts = torch.arange(1, x.shape[1] + 1, device=x.device)
    kept = (ordered * counts > excess).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = excess.gather(1, kept - 1) / kept
    return torch.where(support, (x - threshold).clamp_min(0.0), 0.0)


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


def _working(x: Tensor) -> Tensor:
    """``x``, at least in float32. Not a copy if it is already: don't write to it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()


def _offset(x: Tensor, center: Tensor | None) -> Tensor:
    """``x − center``, at least in float32. Not a copy without a centre: don't write to it."""
    return _working(x) if center is None else _working(x) - center


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` as ``(B, 1, …)``, to combine with ``x``."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _memory_order(x: Tensor) -> list[int]:
    """The axes by decreasing stride, image first."""
    return [0, *sorted(range(1, x.ndim), key=lambda axis: -x.stride(axis))]


def _scaled(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """``x / peak``, the largest magnitude ``peak``, and the float64 l2 norm of ``x / peak``; 1 for zero vectors."""
    peak = torch.maximum(x.amax(dim=axes, keepdim=True), -x.amin(dim=axes, keepdim=True))
    divisor = torch.where(peak == 0, torch.ones_like(peak), peak)
    unit = x / divisor
    length = unit.square().sum(dim=axes, keepdim=True).double().sqrt()
    return unit, peak, torch.where(peak == 0, torch.ones_like(length), length)
