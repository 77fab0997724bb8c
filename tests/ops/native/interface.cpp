// cuda/kernels.h with C names, to be called from Python with plain arrays.
#include <vector>

#include "kernels.h"

using namespace ilo;

extern "C" {

void ilo_bias_act(int storage, const void* x, const void* bias, void* y, int64_t size, int64_t channels, int64_t inner,
                  double slope, double gain, double limit, uint64_t seed) {
  bias_act(Storage(storage), x, bias, y, size, channels, inner, slope, gain, limit, &seed);
}

void ilo_bias_act_backward(int storage, const void* grad, const void* y, void* out, int64_t size, double slope,
                           double gain, double limit, uint64_t seed) {
  bias_act_backward(Storage(storage), grad, y, out, size, slope, gain, limit, &seed);
}

// sizes: outer, inner, height in, height out, width in, width out, up, down, top, left
void ilo_upfirdn2d(int storage, const void* x, void* y, const int64_t* sizes, const double* taps, int64_t count,
                   double gain, uint64_t seed) {
  const int64_t up = sizes[6], down = sizes[7];
  const Planes planes{sizes[0], sizes[1], {sizes[2], sizes[3], up, down, sizes[8], count},
                      {sizes[4], sizes[5], up, down, sizes[9], count}};
  Taps<double> vertical{}, horizontal{};
  vertical.count = horizontal.count = int(count);
  for (int j = 0; j < count; ++j) vertical.value[j] = taps[j] * gain, horizontal.value[j] = taps[j];
  upfirdn2d(Storage(storage), x, y, planes, vertical, horizontal, &seed);
}

void ilo_l1_ball(int storage, const void* x, const void* center, const double* radius, double* threshold, void* z,
                 int64_t images, int64_t n, uint64_t seed) {
  std::vector<double> workspace(l1_workspace_bytes(images, n) / sizeof(double));
  l1_threshold(Storage(storage), x, center, radius, threshold, images, n, workspace.data(), &seed);
  l1_shrink(Storage(storage), x, center, threshold, z, images, n, &seed);
}

void ilo_l1_derivative(int storage, const void* x, const void* center, const double* threshold, const void* v,
                       const double* rho, void* out, double* mean, int64_t images, int64_t n, uint64_t seed) {
  std::vector<double> workspace(l1_workspace_bytes(images, n) / sizeof(double));
  l1_derivative(Storage(storage), x, center, threshold, v, rho, out, mean, images, n, workspace.data(), &seed);
}
}
