#include <array>

#include "l1_ball.h"
#include "parallel.h"

namespace ilo {
namespace {

constexpr int64_t block = 2048;
constexpr int lanes = 16;
constexpr int64_t grain = 1 << 21;  // for fewer coordinates, waiting for a busy core costs more than a second one brings

template <typename T, int count>
using Lanes = T[count][lanes];

// `count` sums (the first may be a maximum) over every `each`-th block of an image's coordinates, of what
// `add(lanes, k, i)` adds for coordinate i to the k-th lane of each: in the working precision over few coordinates, in
// float64 over these, in an order that depends neither on the number of threads nor on the width of their registers.
// `see(number, begin, end)` has a second look at each block.
template <typename T, int count, bool maximum = false, typename Add, typename See>
std::array<double, count> reduce(int64_t n, int64_t each, const Add& add, const See& see) {
  const auto combine = [](std::array<double, count>& all, int which, double value) {
    all[which] = which == 0 && maximum ? std::max(all[which], value) : all[which] + value;
  };
  std::vector<std::array<double, count>> found(ceil_div(n, block * each));
  parallel(found.size(), grain / block, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Lanes<T, count> sums = {};
      const int64_t start = b * each * block, stop = std::min(n, start + block);
      int64_t i = start;
      for (; i + lanes <= stop; i += lanes) {
        for (int k = 0; k < lanes; ++k) add(sums, k, i + k);
      }
      for (int k = 0; i + k < stop; ++k) add(sums, k, i + k);
      found[b] = {};
      for (int which = 0; which < count; ++which) {
        for (int k = 0; k < lanes; ++k) combine(found[b], which, sums[which][k]);
      }
      see(b, start, stop);
    }
  });
  std::array<double, count> all = {};
  for (const auto& one : found) {
    for (int which = 0; which < count; ++which) combine(all, which, one[which]);
  }
  return all;
}

template <typename T, int count, bool maximum = false, typename Add>
std::array<double, count> reduce(int64_t n, int64_t each, const Add& add) {
  return reduce<T, count, maximum>(n, each, add, [](int64_t, int64_t, int64_t) {});
}

// Σ max(|d| − τ, 0) and the number of coordinates above τ.
template <typename T, typename Distance>
std::array<double, 2> above(int64_t n, int64_t each, const Distance& distance, const Threshold<T>& threshold) {
  return reduce<T, 2>(n, each, [=](Lanes<T, 2>& sums, int k, int64_t i) {
    const T e = threshold.above(std::fabs(distance(i)));
    sums[0][k] += e < 0 ? T(0) : e;  // two conditions on e itself: a chain of them is not vectorised
    sums[1][k] += e > 0 ? T(1) : T(0);
  });
}

// Newton's method on every `each`-th block, with its share of the radius, from a guess of τ if there is one.
template <typename T, typename Distance>
Search plain_search(int64_t n, int64_t each, double radius, const Distance& distance, double guess = NAN) {
  const int64_t last = (ceil_div(n, block * each) - 1) * block * each;
  const int64_t seen = last / each + std::min(block, n - last);
  const auto measured = reduce<T, 2, true>(n, each, [=](Lanes<T, 2>& sums, int k, int64_t i) {
    const T magnitude = std::fabs(distance(i));
    sums[0][k] = magnitude > sums[0][k] ? magnitude : sums[0][k];
    sums[1][k] += magnitude;
  });
  Search search{radius * seen / n, 0, 0, 0, 0, false};
  search.begin(measured[0], measured[1], double(seen));
  search.guess(guess);
  while (!search.done) {
    const auto found = above<T>(n, each, distance, {search.peak, search.gap});
    search.step(found[0], found[1]);
  }
  return search;
}

// A sample tells τ to within a few of its standard errors, low … high. One pass then finds what is above `high` as two
// sums, and the few coordinates between, among which the search ends. Where the sample is small, or misleads, Newton's
// method goes on from what it tells.
template <typename T, typename Distance>
Search search(int64_t n, double radius, const Distance& distance) {
  if (n <= 32 * block) return plain_search<T>(n, 1, radius, distance);
  const Search sample = plain_search<T>(n, 16, radius, distance);
  const double tau = sample.peak - sample.gap;
  if (!(sample.support >= 4096 && sample.gap > 1e-6 * sample.peak)) {
    return plain_search<T>(n, 1, radius, distance, tau);
  }

  const double width = 6 * sample.radius / sample.support / std::sqrt(sample.support);
  const double low = tau - width, high = tau + width;
  const Threshold<T> below_all(low, 0), above_all(high, 0);
  std::vector<std::vector<T>> parts(ceil_div(n, block));
  const auto measured = reduce<T, 4, true>(
      n, 1,
      [=](Lanes<T, 4>& sums, int k, int64_t i) {
        const T magnitude = std::fabs(distance(i)), e = above_all.above(magnitude);
        sums[0][k] = magnitude > sums[0][k] ? magnitude : sums[0][k];
        sums[1][k] += magnitude;
        sums[2][k] += e < 0 ? T(0) : e;
        sums[3][k] += e > 0 ? T(1) : T(0);
      },
      [&](int64_t b, int64_t i, int64_t stop) {
        for (; i < stop; i += 4 * lanes) {
          const int64_t end = std::min(stop, i + 4 * lanes);
          int between = 0;
          for (int64_t j = i; j < end; ++j) {
            const T magnitude = std::fabs(distance(j));
            between += (below_all.above(magnitude) > 0) & (above_all.above(magnitude) <= 0);
          }
          for (int64_t j = i; between > 0 && j < end; ++j) {
            const T magnitude = std::fabs(distance(j));
            if (below_all.above(magnitude) > 0 && above_all.above(magnitude) <= 0) parts[b].push_back(magnitude);
          }
        }
      });
  Search search{radius, 0, 0, 0, 0, false};
  search.begin(measured[0], measured[1], double(n));
  search.guess(tau);
  std::vector<T> between;
  for (const auto& part : parts) between.insert(between.end(), part.begin(), part.end());
  const auto at = [&](double gap) {
    const double rise = high - (search.peak - gap);  // from the threshold to `high`
    auto found = above<T>(between.size(), 1, [&](int64_t i) { return between[i]; }, {search.peak, gap});
    found[0] += measured[2] + measured[3] * rise, found[1] += measured[3];
    return found;
  };
  const bool trapped = !search.done && at(search.peak - low)[0] >= radius && measured[2] <= radius;
  while (!search.done) {
    const auto found = trapped ? at(search.gap) : above<T>(n, 1, distance, {search.peak, search.gap});
    search.step(found[0], found[1]);
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
      const T* c = center ? static_cast<const T*>(center) + image * n : nullptr;
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
      const auto dot = reduce<T, 2>(n, 1, [=](Lanes<T, 2>& sums, int k, int64_t i) {
        const T s = soft.sign(distance(i));
        sums[0][k] += s * from[i];
        sums[1][k] += s == 0 ? T(0) : T(1);
      });
      const Derivative<T> derivative(peak, gap, dot[0], dot[1], rho[image]);
      mean[image] = derivative.mean;
      each_coordinate(n, [=](int64_t i) { to[i] = derivative.value(from[i], distance(i)); });
    });
  });
}

}  // namespace ilo
