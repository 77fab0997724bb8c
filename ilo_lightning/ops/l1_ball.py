"""Projection onto l1 balls: the threshold by Newton's method, without sorting, and its derivatives.

The projection soft-thresholds ``d = x − center``: ``z = center + sign(d)·max(|d| − τ, 0)`` with the τ for which the
l1 norm is the radius (Duchi et al. 2008, "Efficient projections onto the l1-ball", section 4). τ is found by Newton's
method on ``Σ max(|d| − τ, 0) = radius``, which is Michelot's fixed point (Condat 2016, "Fast projection onto the
simplex and the l1 ball", section 3): from a lower bound of τ it only grows, the set of coordinates above it only
shrinks, and once the set stays the same τ is exact.

τ is told by two float64 numbers, the largest |d| (``peak``) and ``gap = peak − τ``: where the radius is tiny against
the coordinates τ rounds to the peak, while the gap still holds the answer. The gap is infinite for an image inside its
ball, NaN for one that holds NaN, or infinities that its radius excludes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .implementation import kernels

_BLOCK = 4096  # coordinates summed in the working precision before float64 takes over; float32 counts them exactly


def l1_ball(x: Tensor, radius: Tensor, center: Tensor | None = None) -> Tensor:
    """The nearest point of the l1 ball ``{z: ‖z − center‖₁ <= radius}``, for each image; differentiable.

    Args:
        x: ``(B, n)``, floating point; a row is an image.
        radius: ``(B,)`` float64, ``>= 0``; not checked.
        center: ``(B, n)``, of the type of ``x``; ``None`` is the origin.

    Returns:
        ``(B, n)``. Differentiable any number of times by all three arguments: with S the coordinates above the
        threshold and s their signs, the derivative is ``1_S − s sᵀ/|S|`` by x and ``s/|S|`` by the radius; outside S,
        and at radius 0, it is zero.
    """
    if kernels(x):
        return torch.ops.ilo.l1_ball(x, center, radius)[0]
    threshold = l1_threshold_reference(x.detach(), center, radius.detach())
    z = l1_shrink_reference(x.detach(), center, threshold)
    if not torch.is_grad_enabled():
        return z
    # τ as a formula of what is differentiated, on the support that was found; its value is that of the search
    distance = x if center is None else x - center
    peak, gap = threshold.unsqueeze(2).unbind(1)
    support = _excess(distance.detach().abs(), peak, gap) > 0
    count = support.sum(dim=1, keepdim=True).clamp(min=1)
    tau = (torch.where(support, distance.abs(), 0.0).sum(dim=1, keepdim=True) - radius[:, None].to(x.dtype)) / count
    moving = torch.where(support, distance - distance.sign() * tau, 0.0)
    moving = torch.where(gap.isinf(), distance, moving)
    if center is not None:
        moving = moving + center
    return z.detach() + (moving - moving.detach())


@torch.no_grad()
def l1_threshold(x: Tensor, radius: Tensor, center: Tensor | None = None) -> Tensor:
    """The threshold of each image, ``(B, 2)`` float64: peak and gap (see above); arguments as for `l1_ball`."""
    if kernels(x):
        return torch.ops.ilo.l1_threshold(x, center, radius)
    return l1_threshold_reference(x, center, radius)


@torch.no_grad()
def l1_shrink(x: Tensor, threshold: Tensor, center: Tensor | None = None) -> Tensor:
    """The projection, given its threshold. Images inside their ball are copied bit for bit."""
    if kernels(x):
        return torch.ops.ilo.l1_shrink(x, center, threshold)
    return l1_shrink_reference(x, center, threshold)


@torch.no_grad()
def l1_threshold_reference(x: Tensor, center: Tensor | None, radius: Tensor) -> Tensor:
    """`l1_threshold` in plain torch."""
    magnitude = (x if center is None else x - center).abs()
    if magnitude.numel() == 0:
        return radius.new_full((len(x), 2), torch.inf)
    peak, norm, n = magnitude.amax(dim=1).double(), _sum(magnitude), magnitude.shape[1]
    inside = norm <= radius
    # Both bounds of the gap follow from Σ max(gap − (peak − |d|), 0) = radius; the factor covers the mean's rounding.
    gap = torch.minimum(radius, radius / n + peak * (1 + 1e-12) - norm / n)
    gap = torch.where(norm.isfinite(), gap, torch.nan).masked_fill(inside, 0.0)
    support = torch.full_like(gap, -1)
    while True:
        excess = _excess(magnitude, peak[:, None], gap[:, None])
        total = _sum(excess)
        previous, support = support, _sum(excess.sign_().nan_to_num_())
        shrinking = support != previous
        if not shrinking.any():
            return torch.stack([peak, gap.masked_fill(inside, torch.inf)], dim=1)
        newton = torch.minimum(gap, gap - (total - radius) / support.clamp(min=1))
        gap = torch.where(shrinking, newton, gap)


@torch.no_grad()
def l1_shrink_reference(x: Tensor, center: Tensor | None, threshold: Tensor) -> Tensor:
    """`l1_shrink` in plain torch."""
    peak, gap = threshold.unsqueeze(2).unbind(1)
    distance = x if center is None else x - center
    z = _excess(distance.abs(), peak, gap).copysign_(distance)
    if center is not None:
        z.add_(center)
    inside = gap == torch.inf
    return torch.where(inside, x, z) if inside.any() else z


def _excess(magnitude: Tensor, peak: Tensor, gap: Tensor) -> Tensor:
    """``max(magnitude − τ, 0)`` with ``τ = peak − gap``, to relative (not absolute) precision.

    τ is split into two numbers of the working precision: ``magnitude − high`` is exact near the threshold, so the
    many coordinates barely above it don't lose the digits that make up the norm.
    """
    high = (peak - gap).to(magnitude.dtype)
    low = ((peak - high.double()) - gap).to(magnitude.dtype)
    return torch.sub(magnitude, high).sub_(low).clamp_(min=0)


def _sum(rows: Tensor) -> Tensor:
    """Row sums of ``(B, n)`` in float64. Float32 does the short blocks, ten times faster than casting everything."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    rest = rows[:, whole:].sum(dim=1, dtype=torch.float64)
    if not whole:
        return rest
    return rows[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=2).sum(dim=1, dtype=torch.float64) + rest


torch.library.define("ilo::l1_threshold", "(Tensor x, Tensor? center, Tensor radius) -> Tensor")
torch.library.define("ilo::l1_shrink", "(Tensor x, Tensor? center, Tensor threshold) -> Tensor")
torch.library.define("ilo::l1_ball", "(Tensor x, Tensor? center, Tensor radius) -> (Tensor, Tensor)")
# The derivative is symmetric, [[1_S − s sᵀ/|S|, s/|S|], [sᵀ/|S|, 0]] on (x, radius), so forward, backward and double
# backward are one operation: (v, ρ) ↦ (v_S − s·(sᵀv − ρ)/|S|, sᵀv/|S|).
torch.library.define(
    "ilo::l1_derivative", "(Tensor v, Tensor rho, Tensor x, Tensor? center, Tensor threshold) -> (Tensor, Tensor)"
)


@torch.library.register_fake("ilo::l1_threshold")
def _(x, center, radius):
    return x.new_empty((x.shape[0], 2), dtype=torch.float64)


@torch.library.register_fake("ilo::l1_shrink")
def _(x, center, threshold):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("ilo::l1_ball")
def _(x, center, radius):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty((x.shape[0], 2), dtype=torch.float64)


@torch.library.register_fake("ilo::l1_derivative")
def _(v, rho, x, center, threshold):
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[:1], dtype=torch.float64)


def _keep(ctx, inputs, output):
    x, center, _ = inputs
    ctx.save_for_backward(x, center, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    x, center, threshold = ctx.saved_tensors
    rho = grad.new_zeros(len(grad), dtype=torch.float64)
    by_x, by_radius = torch.ops.ilo.l1_derivative(grad, rho, x, center, threshold)
    return by_x, grad - by_x if center is not None else None, by_radius


def _keep_derivative(ctx, inputs, output):
    ctx.save_for_backward(*inputs[2:])


def _backward_derivative(ctx, grad, grad_mean):
    x = ctx.saved_tensors[0]
    grad = torch.zeros_like(x) if grad is None else grad
    grad_mean = x.new_zeros(len(x), dtype=torch.float64) if grad_mean is None else grad_mean
    return *torch.ops.ilo.l1_derivative(grad, grad_mean, *ctx.saved_tensors), None, None, None


torch.library.register_autograd("ilo::l1_ball", _backward, setup_context=_keep)
torch.library.register_autograd("ilo::l1_derivative", _backward_derivative, setup_context=_keep_derivative)
