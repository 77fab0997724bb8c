#include "l1_ball.h"
#include "parallel.h"

namespace ilo {
namespace {

struct Pair {
  double first, second;
};

constexpr int64_t block = 2048;
constexpr int64_t grain = 1 << 21;  // for fewer coordinates, waiting for a busy core costs more than a second one brings

// A sum (or a maximum) and a sum, over every `each`-th block of an image's coordinates, of what `add(first, second, i)`
// adds: in the working precision over few coordinates, in float64 over these, in an order that depends neither on the
// number of threads nor on the width of their registers.
template <typename T, bool maximum = false, typename Add>
Pair reduce(int64_t n, int64_t each, const Add& add) {
  constexpr int lanes = 16;
  std::vector<Pair> found(ceil_div(n, block * each));
  parallel(found.size(), grain / block, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T first[lanes] = {}, second[lanes] = {};
      int64_t i = b * each * block;
      const int64_t stop = std::min(n, i + block);
      for (; i + lanes <= stop; i += lanes) {
        for (int k = 0; k < lanes; ++k) add(first[k], second[k], i + k);
      }
      for (int k = 0; i + k < stop; ++k) add(first[k], second[k], i + k);
      Pair all{0, 0};
      for (int k = 0; k < lanes; ++k) {
        all.first = maximum ? std::max<double>(all.first, first[k]) : all.first + first[k];
        all.second += second[k];
      }
      found[b] = all;
    }
  });
  Pair all{0, 0};
  for (const Pair& one : found) {
    all.first = maximum ? std::max(all.first, one.first) : all.first + one.first;
    all.second += one.second;
  }
  return all;
}

template <typename T, typename Distance>
Search search(int64_t n, double radius, const Distance& distance, int64_t each = 1) {
  const int64_t last = (ceil_div(n, block * each) - 1) * block * each;
  const int64_t seen = last / each + std::min(block, n - last);
  const Pair measured = reduce<T, true>(n, each, [=](T& peak, T& norm, int64_t i) {
    const T magnitude = std::fabs(distance(i));
    peak = magnitude > peak ? magnitude : peak;
    norm += magnitude;
  });
  Search search{radius * seen / n, 0, 0, 0, 0, false};
  search.begin(measured.first, measured.second, double(seen));
  if (each == 1 && n > 32 * block && !search.done) {
    const Search sample = ilo::search<T>(n, radius, distance, 16);  // begin where it ends: half as many passes
    if (std::isfinite(sample.gap)) search.guess(sample.peak - sample.gap);
  }
  while (!search.done) {
    const Threshold<T> threshold(search.peak, search.gap);
    const Pair found = reduce<T>(n, each, [=](T& total, T& support, int64_t i) {
      const T e = threshold.above(std::fabs(distance(i)));
      total += e < 0 ? T(0) : e;  // two conditions on e itself: a chain of them is not vectorised
      support += e > 0 ? T(1) : T(0);
    });
    search.step(found.first, found.second);
  }
  return search;
}

// `body(image, distance)` for every image, where `distance(i)` is the i-th coordinate of x − center. Threads share the
// coordinates of an image where it has many, the images where it has few.
template <typename T, typename Body>
void each_image(const void* x, const void* center, int64_t images, int64_t n, const Body& body) {
  const int64_t many = 1 << 17;
  parallel(images, n < many ? std::max<int64_t>(1, many / 4 / std::max<int64_t>(1, n)) : images, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const T* from = static_cast<const T*>(x) + image * n;
      if (center) {
        const T* c = static_cast<const T*>(center) + image * n;
        body(image, [=](int64_t i) { return from[i] - c[i]; });
      } else {
        body(image, [=](int64_t i) { return from[i]; });
      }
    }
  });
}

template <typename Body>
void each_coordinate(int64_t n, const Body& body) {
  parallel(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace

int64_t l1_workspace_bytes(int64_t, int64_t) { return 0; }

void l1_threshold(Storage storage, const void* x, const void* center, const double* radius, double* threshold,
                  int64_t images, int64_t n, void*, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    each_image<T>(x, center, images, n, [=](int64_t image, const auto& distance) {
      const Search found = search<T>(n, radius[image], distance);
      threshold[2 * image] = found.peak;
      threshold[2 * image + 1] = found.gap;
    });
  });
}

void l1_shrink(Storage storage, const void* x, const void* center, const double* threshold, void* z, int64_t images,
               int64_t n, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    each_image<T>(x, center, images, n, [=](int64_t image, const auto& distance) {
      const double peak = threshold[2 * image], gap = threshold[2 * image + 1];
      const Threshold<T> soft(peak, gap);
      const T* from = static_cast<const T*>(x) + image * n;
      const T* c = static_cast<const T*>(center) + image * n;  // not read where null
      T* to = static_cast<T*>(z) + image * n;
      if (gap == INFINITY) {
        each_coordinate(n, [=](int64_t i) { to[i] = from[i]; });
      } else if (center) {
        each_coordinate(n, [=](int64_t i) { to[i] = c[i] + soft.shrink(distance(i)); });
      } else {
        each_coordinate(n, [=](int64_t i) { to[i] = soft.shrink(distance(i)); });
      }
    });
  });
}

void l1_derivative(Storage storage, const void* x, const void* center, const double* threshold, const void* v,
                   const double* rho, void* out, double* mean, int64_t images, int64_t n, void*, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    each_image<T>(x, center, images, n, [=](int64_t image, const auto& distance) {
      const double peak = threshold[2 * image], gap = threshold[2 * image + 1];
      const Threshold<T> soft(peak, gap);
      const T* from = static_cast<const T*>(v) + image * n;
      T* to = static_cast<T*>(out) + image * n;
      const Pair dot = reduce<T>(n, 1, [=](T& dot, T& support, int64_t i) {
        const T s = soft.sign(distance(i));
        dot += s * from[i];
        support += s == 0 ? T(0) : T(1);
      });
      const Derivative<T> derivative(peak, gap, dot.first, dot.second, rho[image]);
      mean[image] = derivative.mean;
      each_coordinate(n, [=](int64_t i) { to[i] = derivative.value(from[i], distance(i)); });
    });
  });
}

}  // namespace ilo
