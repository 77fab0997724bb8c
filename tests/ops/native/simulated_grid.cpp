// The GPU programs of cuda/, run on the CPU: phase by phase, in each phase the threads of a block in a random order, and
// the blocks in a random order, several under way at a time. Shared memory starts as NaN. The stream is a pointer to the
// seed of the order.
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "bias_act.h"
#include "kernels.h"
#include "l1_ball_programs.h"
#include "upfirdn2d.h"

namespace ilo {
namespace {

// A 16-bit type, to see that the programs compute in float32 what they store in less.
struct BFloat16 {
  uint16_t bits;
  explicit BFloat16(float value) {
    uint32_t whole;
    std::memcpy(&whole, &value, sizeof(whole));
    bits = value == value ? (whole + 0x7fff + (whole >> 16 & 1)) >> 16 : 0x7fc0;
  }
  operator float() const {
    const uint32_t whole = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &whole, sizeof(value));
    return value;
  }
};

struct Simulated {
  Stream seed;

  template <typename Program>
  void operator()(const Program& program, int64_t blocks, int threads) const {
    struct Block {
      int64_t number;
      int phase;
      std::unique_ptr<char[]> shared;
    };
    std::mt19937_64 random(*static_cast<const uint64_t*>(seed));
    std::vector<int64_t> waiting(blocks);
    std::iota(waiting.begin(), waiting.end(), 0);
    std::shuffle(waiting.begin(), waiting.end(), random);
    std::vector<int> order(threads);
    std::iota(order.begin(), order.end(), 0);
    std::vector<Block> under_way;
    const int64_t bytes = program.shared_bytes(threads);
    if (bytes > 48 << 10) throw std::runtime_error("more shared memory than a block gets");
    while (!waiting.empty() || !under_way.empty()) {
      while (under_way.size() < 4 && !waiting.empty()) {
        under_way.push_back({waiting.back(), 0, std::make_unique<char[]>(bytes)});
        std::memset(under_way.back().shared.get(), 0xff, bytes);
        waiting.pop_back();
      }
      const size_t chosen = random() % under_way.size();
      Block& block = under_way[chosen];
      std::shuffle(order.begin(), order.end(), random);
      for (const int thread : order) {
        program.phase(block.phase, Where{block.number, blocks, thread, threads}, block.shared.get());
      }
      if (++block.phase == program.phases()) {
        std::swap(under_way[chosen], under_way.back());
        under_way.pop_back();
      }
    }
  }
};

template <typename Function>
void with_type(Storage storage, const Function& function) {
  switch (storage) {
    case Storage::float32: return function(static_cast<float*>(nullptr));
    case Storage::float64: return function(static_cast<double*>(nullptr));
    case Storage::bfloat16: return function(static_cast<BFloat16*>(nullptr));
    default: throw std::invalid_argument("not simulated");
  }
}

template <typename T>
Rows<T> rows_of(const void* x, const void* center, int64_t images, int64_t n) {
  return {static_cast<const T*>(x), static_cast<const T*>(center), images, n};
}

}  // namespace

void bias_act(Storage storage, const void* x, const void* bias, void* y, int64_t size, int64_t channels, int64_t inner,
              double slope, double gain, double limit, Stream seed) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_bias_act(Simulated{seed}, static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(y), size,
                    channels, inner, bias_act_of<T>(slope, gain, limit));
  });
}

void bias_act_backward(Storage storage, const void* grad, const void* y, void* out, int64_t size, double slope,
                       double gain, double limit, Stream seed) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_bias_act_backward(Simulated{seed}, static_cast<const T*>(grad), static_cast<const T*>(y),
                             static_cast<T*>(out), size, bias_act_of<T>(slope, gain, limit));
  });
}

void upfirdn2d(Storage storage, const void* x, void* y, const Planes& planes, const Taps<double>& vertical,
               const Taps<double>& horizontal, Stream seed) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_upfirdn2d(Simulated{seed}, static_cast<const T*>(x), static_cast<T*>(y), planes,
                     taps_as<Working<T>>(vertical), taps_as<Working<T>>(horizontal));
  });
}

int64_t l1_workspace_bytes(int64_t images, int64_t n) { return L1Workspace::bytes(images, n); }

void l1_threshold(Storage storage, const void* x, const void* center, const double* radius, double* threshold,
                  int64_t images, int64_t n, void* workspace, Stream seed) {
  const auto all_done = [](const Search* searches, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (!searches[i].done) return false;
    }
    return true;
  };
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_threshold(Simulated{seed}, all_done, rows_of<T>(x, center, images, n), radius, threshold, workspace);
  });
}

void l1_shrink(Storage storage, const void* x, const void* center, const double* threshold, void* z, int64_t images,
               int64_t n, Stream seed) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_shrink(Simulated{seed}, rows_of<T>(x, center, images, n), threshold, static_cast<T*>(z));
  });
}

void l1_derivative(Storage storage, const void* x, const void* center, const double* threshold, const void* v,
                   const double* rho, void* out, double* mean, int64_t images, int64_t n, void* workspace,
                   Stream seed) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch_l1_derivative(Simulated{seed}, rows_of<T>(x, center, images, n), threshold, static_cast<const T*>(v), rho,
                         static_cast<T*>(out), mean, workspace);
  });
}

}  // namespace ilo
