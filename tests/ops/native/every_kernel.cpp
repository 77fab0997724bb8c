// Calls every function of cuda/kernels.h on many shapes, with buffers of exactly the size they need, and prints a sum of
// each result. Linked with either implementation, under a sanitizer, or for several processors.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kernels.h"

using namespace ilo;

std::mt19937_64 generator(0);
uint64_t seed = 1;

template <typename T>
std::vector<T> normal(int64_t size) {
  std::normal_distribution<double> distribution;
  std::vector<T> values(size);
  for (T& value : values) value = T(distribution(generator));
  return values;
}

template <typename T>
void print(const char* name, const std::vector<T>& values) {
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * std::cos(double(i));
  std::printf("%s %.17g\n", name, sum);
}

template <typename T>
void all(Storage storage) {
  for (int64_t outer : {1, 3}) {
    for (int64_t channels : {1, 5, 33}) {
      for (int64_t inner : {1, 7, 64}) {
        const int64_t size = outer * channels * inner;
        const auto x = normal<T>(size), bias = normal<T>(channels);
        std::vector<T> y(size), out(size);
        bias_act(storage, x.data(), bias.data(), y.data(), size, channels, inner, 0.2, 1.5, 0.9, &seed);
        print("bias_act", y);
        bias_act_backward(storage, x.data(), y.data(), out.data(), size, 0.2, 1.5, 0.9, &seed);
        print("bias_act_backward", out);
        bias_act(storage, x.data(), nullptr, y.data(), size, 1, size, 0.2, 1.5, NAN, &seed);
        print("bias_act", y);
      }
    }
  }
  for (int64_t up : {1, 2}) {
    for (int64_t down : {1, 3}) {
      for (int64_t count : {1, 5, 64}) {
        for (int64_t inner : {1, 33}) {
          for (int64_t pad : {-1, 2, 62}) {
            const int64_t outer = 1, height = 5, width = 17, last = pad + 1;
            if (std::min(height, width) * up + pad + last < count) continue;
            const auto out = [&](int64_t size) { return (size * up + pad + last - count) / down + 1; };
            const Planes planes{outer, inner, {height, out(height), up, down, pad, count},
                                {width, out(width), up, down, pad, count}};
            Taps<double> taps{};
            taps.count = int(count);
            const auto values = normal<double>(count);
            std::copy(values.begin(), values.end(), taps.value);
            const auto x = normal<T>(outer * inner * height * width);
            std::vector<T> y(outer * inner * out(height) * out(width));
            upfirdn2d(storage, x.data(), y.data(), planes, taps, taps, &seed);
            print("upfirdn2d", y);
          }
        }
      }
    }
  }
  for (int64_t images : {1, 3}) {
    for (int64_t n : {1, 15, 16, 17, 2049, 70001}) {
      const auto x = normal<T>(images * n), center = normal<T>(images * n), v = normal<T>(images * n);
      for (const T* middle : {static_cast<const T*>(nullptr), center.data()}) {
        std::vector<double> radius(images), threshold(2 * images), mean(images), rho(images, 0.5);
        for (int64_t i = 0; i < images; ++i) radius[i] = i == 2 ? INFINITY : 0.1 * double(n);
        std::vector<char> workspace(l1_workspace_bytes(images, n));
        std::vector<T> z(images * n);
        l1_threshold(storage, x.data(), middle, radius.data(), threshold.data(), images, n, workspace.data(), &seed);
        l1_shrink(storage, x.data(), middle, threshold.data(), z.data(), images, n, &seed);
        print("l1_shrink", z);
        l1_derivative(storage, x.data(), middle, threshold.data(), v.data(), rho.data(), z.data(), mean.data(), images,
                      n, workspace.data(), &seed);
        print("l1_derivative", z);
        print("l1_derivative mean", mean);
      }
    }
  }
}

#ifdef ILO_SERIAL  // the kernels that are for the CPU alone
template <typename T>
void styled(Storage storage) {
  for (int64_t images : {1, 3}) {
    for (int64_t channels : {1, 5, 43}) {
      for (int64_t pixels : {1, 7, 5000}) {
        const int64_t size = images * channels * pixels;
        const auto x = normal<T>(size), grad = normal<T>(size), bias = normal<T>(channels);
        const auto scale = normal<T>(images * channels), noise = normal<T>(images * pixels);
        for (bool all : {true, false}) {
          const T *scales = all ? scale.data() : nullptr, *map = all ? noise.data() : nullptr;
          const double limit = all ? 0.9 : NAN;
          auto y = x;
          styled_act(storage, y.data(), scales, bias.data(), map, images, pixels, channels, 0.2, limit);
          print("styled_act", y);
          std::vector<T> inner(size), total(images * channels), over_channels(images * pixels);
          styled_act_backward(storage, grad.data(), y.data(), scales, bias.data(), map, inner.data(), total.data(),
                              over_channels.data(), images, pixels, channels, 0.2, limit);
          print("styled_act_backward", inner);
          print("styled_act_backward total", total);
          print("styled_act_backward noise", over_channels);
          style_backward(storage, inner.data(), x.data(), scale.data(), total.data(), images, pixels, channels);
          print("styled style_backward", inner);
          print("styled style_backward total", total);
        }
      }
    }
  }
}
#endif

int main() {
  all<float>(Storage::float32);
  all<double>(Storage::float64);
#ifdef ILO_SERIAL
  styled<float>(Storage::float32);
  styled<double>(Storage::float64);
#endif
}
