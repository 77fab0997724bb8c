#include "bias_act.h"
#include "parallel.h"

namespace ilo {
namespace {

constexpr int64_t grain = 1 << 15;

template <typename T>
void forward(const T* x, const T* bias, T* y, int64_t size, int64_t channels, int64_t inner, BiasAct<T> f) {
  if (!bias) channels = 1, inner = size;
  parallel(size, grain, [=](int64_t i, int64_t end) {
    while (i < end) {
      if (bias && inner == 1) {  // channels_last: neighbours have different biases
        const int64_t channel = i % channels, some = std::min(end - i, channels - channel);
        const T *from = x + i, *b = bias + channel;
        T* to = y + i;
        for (int64_t k = 0; k < some; ++k) to[k] = f.value(from[k], b[k]);
        i += some;
      } else {
        const int64_t row = i / inner, stop = std::min(end, (row + 1) * inner);
        const T b = bias ? bias[row % channels] : T(0);
        for (; i < stop; ++i) y[i] = f.value(x[i], b);
      }
    }
  });
}

}  // namespace

void bias_act(Storage storage, const void* x, const void* bias, void* y, int64_t size, int64_t channels, int64_t inner,
              double slope, double gain, double limit, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    forward(static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), size, channels, inner,
            bias_act_of<T>(slope, gain, limit));
  });
}

void bias_act_backward(Storage storage, const void* grad, const void* y, void* out, int64_t size, double slope,
                       double gain, double limit, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto f = bias_act_of<T>(slope, gain, limit);
    const T *from = static_cast<const T*>(grad), *value = static_cast<const T*>(y);
    T* to = static_cast<T*>(out);
    parallel(size, grain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = from[i] * f.derivative(value[i]);
    });
  });
}

}  // namespace ilo
