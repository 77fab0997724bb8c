// The threads of torch. ILO_SERIAL leaves them out, for tests under a sanitizer.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "kernels.h"

#ifndef ILO_SERIAL
#include <ATen/Parallel.h>
#endif

namespace ilo {

template <typename Body>
void parallel(int64_t size, int64_t grain, const Body& body) {  // body(begin, end)
#ifdef ILO_SERIAL
  (void)grain;
  if (size > 0) body(int64_t(0), size);
#else
  at::parallel_for(0, size, grain, body);
#endif
}

// Call `function` with a null pointer of the stored type; the CPU kernels take two of them.
template <typename Function>
void with_type(Storage storage, const Function& function) {
  if (storage == Storage::float32) return function(static_cast<float*>(nullptr));
  if (storage == Storage::float64) return function(static_cast<double*>(nullptr));
  throw std::invalid_argument("the CPU kernels take float32 and float64");
}

}  // namespace ilo
