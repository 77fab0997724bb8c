#include <vector>

#include "dispatch.cuh"
#include "l1_ball_programs.h"

namespace ilo {
namespace {

template <typename T>
Rows<T> rows_of(const void* x, const void* center, int64_t images, int64_t n) {
  return {static_cast<const T*>(x), static_cast<const T*>(center), images, n};
}

}  // namespace

int64_t l1_workspace_bytes(int64_t images, int64_t n) { return L1Workspace::bytes(images, n); }

void l1_threshold(Storage storage, const void* x, const void* center, const double* radius, double* threshold,
                  int64_t images, int64_t n, void* workspace, Stream stream) {
  const auto all_done = [&](const Search* searches, int64_t count) {
    std::vector<Search> copy(count);
    const auto to = static_cast<cudaStream_t>(stream);
    if (cudaMemcpyAsync(copy.data(), searches, count * sizeof(Search), cudaMemcpyDeviceToHost, to) != cudaSuccess ||
        cudaStreamSynchronize(to) != cudaSuccess) {
      return true;  // the caller finds the error
    }
    for (const Search& search : copy) {
      if (!search.done) return false;
    }
    return true;
  };
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_threshold(on(stream), all_done, rows_of<T>(x, center, images, n), radius, threshold, workspace);
  });
}

void l1_shrink(Storage storage, const void* x, const void* center, const double* threshold, void* z, int64_t images,
               int64_t n, Stream stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_shrink(on(stream), rows_of<T>(x, center, images, n), threshold, static_cast<T*>(z));
  });
}

void l1_derivative(Storage storage, const void* x, const void* center, const double* threshold, const void* v,
                   const double* rho, void* out, double* mean, int64_t images, int64_t n, void* workspace,
                   Stream stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_derivative(on(stream), rows_of<T>(x, center, images, n), threshold, static_cast<const T*>(v), rho,
                         static_cast<T*>(out), mean, workspace);
  });
}

}  // namespace ilo
