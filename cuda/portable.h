// What CUDA and the C++ compiler of the CPU kernels both need.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define ILO_BOTH __host__ __device__ __forceinline__
#else
#define ILO_BOTH inline __attribute__((always_inline))
#endif

namespace ilo {

// How the numbers of a tensor are stored.
enum class Storage { float32, float64, float16, bfloat16 };

// The type to compute in: float64 for itself, float32 for everything else.
template <typename T>
struct WorkingType {
  using type = float;
};
template <>
struct WorkingType<double> {
  using type = double;
};
template <typename T>
using Working = typename WorkingType<T>::type;

ILO_BOTH int64_t ceil_div(int64_t a, int64_t b) {  // b > 0
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

template <typename T>
ILO_BOTH T smaller(T a, T b) {
  return b < a ? b : a;
}

}  // namespace ilo
