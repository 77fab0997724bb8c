#include "dispatch.cuh"
#include "upfirdn2d.h"

namespace ilo {

void upfirdn2d(Storage storage, const void* x, void* y, const Planes& planes, const Taps<double>& vertical,
               const Taps<double>& horizontal, Stream stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_upfirdn2d(on(stream), static_cast<const T*>(x), static_cast<T*>(y), planes,
                     taps_as<Working<T>>(vertical), taps_as<Working<T>>(horizontal));
  });
}

}  // namespace ilo
