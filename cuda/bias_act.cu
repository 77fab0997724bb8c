#include "bias_act.h"
#include "dispatch.cuh"

namespace ilo {

void bias_act(Storage storage, const void* x, const void* bias, void* y, int64_t size, int64_t channels, int64_t inner,
              double slope, double gain, double limit, Stream stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_bias_act(on(stream), static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), size,
                    channels, inner, bias_act_of<T>(slope, gain, limit));
  });
}

void bias_act_backward(Storage storage, const void* grad, const void* y, void* out, int64_t size, double slope,
                       double gain, double limit, Stream stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_bias_act_backward(on(stream), static_cast<const T*>(grad), static_cast<const T*>(y), static_cast<T*>(out),
                             size, bias_act_of<T>(slope, gain, limit));
  });
}

}  // namespace ilo
