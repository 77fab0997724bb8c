// From what kernels.h passes to typed programs on a stream.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "phases.h"

namespace ilo {

inline OnStream on(Stream stream) { return {static_cast<cudaStream_t>(stream)}; }

// Call `function` with a null pointer of the stored type.
template <typename Function>
void with_type(Storage storage, const Function& function) {
  switch (storage) {
    case Storage::float32: return function(static_cast<float*>(nullptr));
    case Storage::float64: return function(static_cast<double*>(nullptr));
    case Storage::float16: return function(static_cast<__half*>(nullptr));
    case Storage::bfloat16: return function(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace ilo
