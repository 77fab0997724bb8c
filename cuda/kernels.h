// What the CPU and the CUDA library implement, each on its own pointers. All tensors are dense, in memory order.
#pragma once

#include "portable.h"
#include "upfirdn2d.h"

namespace ilo {

using Stream = void*;  // cudaStream_t; null on the CPU

// (outer, channels, inner); bias may be null, limit NaN.
void bias_act(Storage, const void* x, const void* bias, void* y, int64_t size, int64_t channels, int64_t inner,
              double slope, double gain, double limit, Stream);
void bias_act_backward(Storage, const void* grad, const void* y, void* out, int64_t size, double slope, double gain,
                       double limit, Stream);

void upfirdn2d(Storage, const void* x, void* y, const Planes&, const Taps<double>& vertical,
               const Taps<double>& horizontal, Stream);

// For the CPU alone; (images, pixels, channels). scale (images, channels), noise (images, pixels) may be null, limit
// NaN.
void styled_act(Storage, void* x, const void* scale, const void* bias, const void* noise, int64_t images,
                int64_t pixels, int64_t channels, double slope, double limit);
void styled_act_backward(Storage, const void* grad, const void* y, const void* scale, const void* bias,
                         const void* noise, void* inner, void* total, void* grad_noise, int64_t images, int64_t pixels,
                         int64_t channels, double slope, double limit);
void style_backward(Storage, void* grad, const void* x, const void* style, void* total, int64_t images, int64_t pixels,
                    int64_t channels);

// (images, n); center may be null. threshold is (images, 2): peak and gap, see l1_ball.h.
int64_t l1_workspace_bytes(int64_t images, int64_t n);
void l1_threshold(Storage, const void* x, const void* center, const double* radius, double* threshold, int64_t images,
                  int64_t n, void* workspace, Stream);
void l1_shrink(Storage, const void* x, const void* center, const double* threshold, void* z, int64_t images, int64_t n,
               Stream);
void l1_derivative(Storage, const void* x, const void* center, const double* threshold, const void* v,
                   const double* rho, void* out, double* mean, int64_t images, int64_t n, void* workspace, Stream);

template <typename W>
Taps<W> taps_as(const Taps<double>& taps) {
  Taps<W> out{};
  out.count = taps.count;
  for (int j = 0; j < taps.count; ++j) out.value[j] = static_cast<W>(taps.value[j]);
  return out;
}

}  // namespace ilo
