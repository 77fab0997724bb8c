// Projection onto the l1 ball: the arithmetic of Newton's search for the threshold, and of the derivative.
//
// The projection of x soft-thresholds its distance d from the centre, z = center + sign(d)·max(|d| − τ, 0), with the τ
// for which Σ max(|d| − τ, 0) is the radius (Duchi et al. 2008, section 4). Newton's method on that equation is
// Michelot's fixed point (Condat 2016, section 3): the set of coordinates above τ only shrinks, and once it stays the
// same τ is exact.
//
// τ is told by two float64 numbers, the largest |d| (peak) and gap = peak − τ: where the radius is tiny against the
// coordinates τ rounds to the peak, while the gap still holds the answer. The gap is infinite for an image inside the
// ball, and NaN for one that holds NaN, or infinities that its radius excludes.
#pragma once

#include "portable.h"

namespace ilo {

// Soft-thresholding to relative, not absolute, precision: τ is split into two numbers, so that |d| − high is exact near
// τ, and the many coordinates barely above it keep the digits that make up the norm.
template <typename W>
struct Threshold {
  W high, low;

  ILO_BOTH Threshold(double peak, double gap) : high(W(peak - gap)), low(W((peak - double(high)) - gap)) {}

  // Negative for the coordinates below τ.
  ILO_BOTH W above(W magnitude) const { return (magnitude - high) - low; }
  ILO_BOTH W excess(W magnitude) const {
    const W e = above(magnitude);
    return e < 0 ? W(0) : e;  // NaN stays
  }
  ILO_BOTH W shrink(W distance) const { return std::copysign(excess(std::fabs(distance)), distance); }
  // The sign of a coordinate above τ; zero (or NaN) for the others.
  ILO_BOTH W sign(W distance) const {
    const W e = above(std::fabs(distance));
    return e > 0 ? std::copysign(W(1), distance) : e * 0;
  }
};

// The search in one image.
struct Search {
  double radius, peak, gap, limit, support;
  bool done;

  // From the largest |d|, the l1 norm of d, and the number of coordinates: τ >= max(peak − radius, (norm − radius) / n).
  ILO_BOTH void begin(double largest, double norm, double n) {
    peak = largest;
    support = -1;
    done = true;
    if (norm <= radius) {
      gap = INFINITY;
    } else if (!(norm - norm == 0)) {
      gap = NAN;
    } else {
      const double mean = radius / n + peak * (1 + 1e-12) - norm / n;  // the factor covers the rounding of the norm
      gap = limit = smaller(radius, mean);
      done = false;
    }
  }
  // Start from a guess of τ instead, on whichever side it lies; NaN and infinity are none.
  ILO_BOTH void guess(double tau) {
    if (!done && peak - tau > 0 && tau - tau == 0) gap = smaller(limit, peak - tau);
  }
  // From Σ max(|d| − τ, 0) and the number of coordinates above τ, at the present τ. The sum is convex in τ, so that the
  // first step leads below the solution, and from there on τ only grows.
  ILO_BOTH void step(double total, double above) {
    if (done) return;
    const double newton = gap - (total - radius) / (above > 1 ? above : 1);
    done = above == support;
    support = above;
    gap = limit = done ? newton : smaller(limit, newton);
  }
  ILO_BOTH bool inside() const { return gap == INFINITY; }
};

// The projection's derivative is P = 1_S − s sᵀ/|S| by x and s/|S| by the radius, with S the coordinates above τ and s
// their signs. [[P, s/|S|], [sᵀ/|S|, 0]] is symmetric, so one function serves forward, backward and double backward:
// (v, ρ) ↦ (P v + ρ s/|S|, sᵀv/|S|).
template <typename W>
struct Derivative {
  Threshold<W> threshold;
  bool inside;
  W shift;      // sᵀv/|S| − ρ/|S|
  double mean;  // sᵀv/|S|

  ILO_BOTH Derivative(double peak, double gap, double dot, double support, double rho)
      : threshold(peak, gap), inside(gap == INFINITY) {
    const double share = support == 0 ? 0 : 1 / support;
    mean = inside ? 0 : dot * share;
    shift = W(inside ? 0 : (dot - rho) * share);
  }
  ILO_BOTH W value(W v, W distance) const {
    if (inside) return v;
    const W s = threshold.sign(distance), moved = v - s * shift;
    return s == 0 ? W(0) : moved;
  }
};

// (images, n) coordinates; without a center it is the origin.
template <typename T>
struct Rows {
  const T* x;
  const T* center;
  int64_t images, n;

  ILO_BOTH Working<T> distance(int64_t i) const {
    const auto d = static_cast<Working<T>>(x[i]);
    return center ? d - static_cast<Working<T>>(center[i]) : d;
  }
};

}  // namespace ilo
