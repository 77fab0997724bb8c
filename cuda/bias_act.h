// y = clamp(gain · leaky_relu(x + bias)): the arithmetic, and its GPU programs.
#pragma once

#include "phases.h"

namespace ilo {

template <typename W>
struct BiasAct {
  W slope, gain;
  W limit;  // of |y|; NaN for none, since no comparison with NaN holds

  ILO_BOTH W value(W x, W bias) const {
    const W sum = x + bias;
    const W y = (sum > 0 ? sum : sum * slope) * gain;
    const W capped = y > limit ? limit : y;
    return capped < -limit ? -limit : capped;
  }

  // dy/dx told from y, which the next layer needs anyway, so that x need not be kept (slope >= 0, gain > 0).
  ILO_BOTH W derivative(W y) const {
    const W d = y > 0 ? gain : gain * slope;
    return (y >= limit) | (y <= -limit) ? W(0) : d;
  }
};

// For tensors stored as T. The limit is rounded as they are, or no result would be found to be at it.
template <typename T>
BiasAct<Working<T>> bias_act_of(double slope, double gain, double limit) {
  using W = Working<T>;
  return {W(slope), W(gain), static_cast<W>(static_cast<T>(static_cast<W>(limit)))};
}

// A dense tensor in memory order is (outer, channels, inner).
template <typename T, typename Index>
struct BiasActProgram {
  const T* x;
  const T* bias;  // (channels), or null
  T* y;
  Index size, channels, inner;
  BiasAct<Working<T>> f;

  ILO_BOTH int phases() const { return 1; }
  ILO_BOTH int64_t shared_bytes(int) const { return 0; }

  ILO_BOTH void phase(int, const Where& at, char*) const {
    using W = Working<T>;
    const Index stride = static_cast<Index>(at.stride());
    for (Index i = static_cast<Index>(at.first()); i < size; i += stride) {
      const W b = bias ? static_cast<W>(bias[i / inner % channels]) : W(0);
      y[i] = static_cast<T>(f.value(static_cast<W>(x[i]), b));
    }
  }
};

template <typename T, typename Index>
struct BiasActBackwardProgram {
  const T* grad;
  const T* y;
  T* out;
  Index size;
  BiasAct<Working<T>> f;

  ILO_BOTH int phases() const { return 1; }
  ILO_BOTH int64_t shared_bytes(int) const { return 0; }

  ILO_BOTH void phase(int, const Where& at, char*) const {
    using W = Working<T>;
    const Index stride = static_cast<Index>(at.stride());
    for (Index i = static_cast<Index>(at.first()); i < size; i += stride) {
      out[i] = static_cast<T>(static_cast<W>(grad[i]) * f.derivative(static_cast<W>(y[i])));
    }
  }
};

// 32-bit indices divide several times faster; their sums with a stride must not overflow.
inline bool fits_32_bits(int64_t size) { return size < (int64_t(1) << 30); }

template <typename T, typename Launch>
void launch_bias_act(const Launch& launch, const T* x, const T* bias, T* y, int64_t size, int64_t channels,
                     int64_t inner, const BiasAct<Working<T>>& f) {
  const int threads = 256;
  if (fits_32_bits(size)) {
    const BiasActProgram<T, int32_t> program{x, bias, y, int32_t(size), int32_t(channels), int32_t(inner), f};
    launch(program, blocks_for(size, threads), threads);
  } else {
    launch(BiasActProgram<T, int64_t>{x, bias, y, size, channels, inner, f}, blocks_for(size, threads), threads);
  }
}

template <typename T, typename Launch>
void launch_bias_act_backward(const Launch& launch, const T* grad, const T* y, T* out, int64_t size,
                              const BiasAct<Working<T>>& f) {
  const int threads = 256;
  if (fits_32_bits(size)) {
    launch(BiasActBackwardProgram<T, int32_t>{grad, y, out, int32_t(size), f}, blocks_for(size, threads), threads);
  } else {
    launch(BiasActBackwardProgram<T, int64_t>{grad, y, out, size, f}, blocks_for(size, threads), threads);
  }
}

}  // namespace ilo
