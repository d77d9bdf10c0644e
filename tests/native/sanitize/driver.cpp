// Runs the loops of csrc/core on random shapes, byte offsets, element types and numbers of threads, and
// compares them with naive ones. Every tensor is an allocation of its own, so that AddressSanitizer sees an
// access beside it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "capability.h"
#include "combine.h"
#include "gram.h"
#include "image.h"
#include "kth.h"
#include "mix.h"
#include "norm.h"
#include "step.h"

namespace {

using namespace ratfast;

std::mt19937 random_words(1);

int below(int limit) { return static_cast<int>(random_words() % static_cast<unsigned>(limit)); }

double normal() { return std::normal_distribution<double>()(random_words); }

void expect(bool condition, const char* what, double got, double want) {
  if (condition) return;
  std::fprintf(stderr, "%s: got %.17g, expected %.17g\n", what, got, want);
  std::exit(1);
}

// Elements at any address, the type's included, with nothing behind them.
class Numbers {
 public:
  Numbers(std::int64_t numel, DType type, int offset, bool positive = false)
      : numel_(numel), type_(type), offset_(offset), bytes_(new unsigned char[size()]) {
    for (std::int64_t i = 0; i < numel; ++i) {
      const double value = below(10) == 0 ? 0 : normal();
      set(i, positive ? std::fabs(value) : value);
    }
  }
  DType type() const { return type_; }
  void* data() const { return bytes_.get() + offset_; }
  double get(std::int64_t i) const {
    return load_packed<double>(type_, bytes_.get() + offset_ + i * item_size(type_), 0);
  }
  void set(std::int64_t i, double value) {
    store_packed<double>(type_, bytes_.get() + offset_ + i * item_size(type_), 0, value);
  }
  // What becomes of a value that is stored here.
  double rounded(double value) const {
    alignas(8) unsigned char bytes[8];
    store_packed<double>(type_, bytes, 0, value);
    return load_packed<double>(type_, bytes, 0);
  }

 private:
  std::size_t size() const { return static_cast<std::size_t>(offset_ + numel_ * item_size(type_)); }

  std::int64_t numel_;
  DType type_;
  int offset_;
  std::unique_ptr<unsigned char[]> bytes_;
};

std::int64_t any_size() {
  const int sizes[] = {0, 1, 7, 63, 64, 65, 200, 1000, 5003};
  return sizes[below(9)] + below(3);
}
DType any_type() { return static_cast<DType>(below(4)); }
int any_offset() { return below(2) == 0 ? 0 : below(17); }

// `models` of `count` tensors, tensor-major.
struct Pool {
  std::vector<std::int64_t> sizes;
  std::vector<Numbers> tensors;
  std::vector<const void*> pointers;
  std::vector<void*> targets;
  std::vector<DType> types;

  Pool(const std::vector<std::int64_t>& all_sizes, int models, bool offsets = true,
       int positive_from = 1 << 20)
      : sizes(all_sizes) {
    for (const auto size : sizes)
      for (int n = 0; n < models; ++n)
        tensors.emplace_back(size, any_type(), offsets ? any_offset() : 0, n >= positive_from);
    for (const auto& tensor : tensors) {
      pointers.push_back(tensor.data());
      targets.push_back(tensor.data());
      types.push_back(tensor.type());
    }
  }
};

std::vector<std::int64_t> any_sizes() {
  std::vector<std::int64_t> sizes(1 + below(5));
  for (auto& size : sizes) size = any_size();
  return sizes;
}

void check_mix(const ParallelFor& parallel_for) {
  const int sources = 1 + below(20), outputs = 1 + below(9);
  const Pool from(any_sizes(), sources), to(from.sizes, outputs);
  std::vector<double> weights(static_cast<std::size_t>(outputs) * sources);
  for (auto& weight : weights) weight = below(5) == 0 ? 0 : normal();
  std::vector<MixSegment> segments;
  for (std::size_t t = 0; t < from.sizes.size(); ++t)
    segments.push_back({from.sizes[t], from.pointers.data() + t * sources, from.types.data() + t * sources,
                        to.targets.data() + t * outputs, to.types.data() + t * outputs});
  mix(segments, outputs, sources, weights.data(), parallel_for);
  for (std::size_t t = 0; t < from.sizes.size(); ++t) {
    for (int k = 0; k < outputs; ++k) {
      const Numbers& got = to.tensors[t * outputs + k];
      for (std::int64_t i = 0; i < from.sizes[t]; ++i) {
        double want = 0;
        for (int n = 0; n < sources; ++n)
          want += weights[static_cast<std::size_t>(k * sources + n)] * from.tensors[t * sources + n].get(i);
        expect(got.get(i) == got.rounded(want), "mix", got.get(i), got.rounded(want));
      }
    }
  }
}

void check_gram(const ParallelFor& parallel_for) {
  const int models = 1 + below(40);
  const Pool pool(any_sizes(), models);
  const std::size_t pairs = static_cast<std::size_t>(models) * models;
  std::vector<GramSegment> segments;
  for (std::size_t t = 0; t < pool.sizes.size(); ++t)
    segments.push_back({pool.sizes[t], pool.pointers.data() + t * models, pool.types.data() + t * models});
  std::vector<double> result(segments.size() * pairs, NAN);
  gram(segments, models, result.data(), parallel_for);
  for (std::size_t t = 0; t < segments.size(); ++t) {
    for (int a = 0; a < models; ++a) {
      const int b = below(models);
      double want = 0, scale = 0;
      for (std::int64_t i = 0; i < pool.sizes[t]; ++i) {
        const double product = pool.tensors[t * models + a].get(i) * pool.tensors[t * models + b].get(i);
        want += product;
        scale += std::fabs(product);
      }
      const double got = result[t * pairs + static_cast<std::size_t>(a * models + b)];
      expect(std::fabs(got - want) <= 1e-12 * scale, "gram", got, want);
    }
  }
}

void check_combine(const ParallelFor& parallel_for) {
  const auto kind = static_cast<CombineKind>(below(6));
  const int models = 1 + below(12), lists = kind == CombineKind::fisher ? 2 * models : models;
  const bool differences = kind == CombineKind::sum || kind == CombineKind::elect, thinned = below(2) == 0;
  const Pool from(any_sizes(), lists, true, models), bases(from.sizes, 1), to(from.sizes, 1);
  std::vector<double> weights(models), densities(models);
  std::vector<std::int64_t> streams(models);
  for (int n = 0; n < models; ++n) {
    weights[n] = 0.1 + 0.1 * below(20);
    densities[n] = 0.25 * (1 + below(4));
    streams[n] = below(1000);
  }
  std::vector<float> thresholds(from.sizes.size() * models);
  for (auto& threshold : thresholds) threshold = 0.1f * static_cast<float>(below(5));
  std::vector<CombineSegment> segments;
  for (std::size_t t = 0; t < from.sizes.size(); ++t)
    segments.push_back({from.sizes[t], from.pointers.data() + t * lists, from.types.data() + t * lists,
                        differences ? bases.pointers[t] : nullptr, bases.types[t], to.targets[t], to.types[t],
                        differences ? thresholds.data() + t * models : nullptr, t, below(100)});
  const CombineOptions options{
      kind, models, weights.data(), differences && thinned ? densities.data() : nullptr, streams.data(),
      3,    0.7,    below(2) == 0};
  combine(segments, options, parallel_for);
  // min, max and sum without draws have a formula of one line; of the others it is enough here that they are
  // finite.
  for (std::size_t t = 0; t < from.sizes.size(); ++t) {
    for (std::int64_t i = 0; i < from.sizes[t]; ++i) {
      const double got = to.tensors[t].get(i);
      expect(std::isfinite(got), "combine", got, 0);
      if (kind != CombineKind::min && kind != CombineKind::max && (kind != CombineKind::sum || thinned))
        continue;
      double want = kind == CombineKind::min ? INFINITY : kind == CombineKind::max ? -INFINITY : 0;
      const double base = bases.tensors[t].get(i);
      for (int n = 0; n < models; ++n) {
        const double value = from.tensors[t * lists + n].get(i), tau = value - base;
        const bool kept = std::fabs(static_cast<float>(tau)) >= thresholds[t * models + n];
        if (kind == CombineKind::sum)
          want += weights[n] * (kept ? tau : 0);
        else
          want = kind == CombineKind::min ? std::min(want, value) : std::max(want, value);
      }
      if (kind == CombineKind::sum) want = base + 0.7 * want;
      expect(got == to.tensors[t].rounded(want), "combine", got, want);
    }
  }
}

void check_kth(const ParallelFor& parallel_for) {
  // Now and then enough of them for the histograms.
  const std::vector<std::int64_t> sizes =
      below(4) == 0 ? std::vector<std::int64_t>{20'001, 30'000} : any_sizes();
  const Pool from(sizes, 1), bases(sizes, 1);
  std::vector<MagnitudeSegment> segments;
  std::vector<float> all;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    segments.push_back({sizes[t], from.pointers[t], from.types[t], bases.pointers[t], bases.types[t]});
    for (std::int64_t i = 0; i < sizes[t]; ++i)
      all.push_back(std::fabs(static_cast<float>(from.tensors[t].get(i) - bases.tensors[t].get(i))));
  }
  std::sort(all.rbegin(), all.rend());
  const int count = below(static_cast<int>(all.size()) + 2);
  const float want = count == 0 ? INFINITY : count >= static_cast<int>(all.size()) ? 0 : all[count - 1];
  const float got = kth_magnitude(segments, count, parallel_for);
  expect(got == want, "kth_magnitude", got, want);
}

void check_square_sum(const ParallelFor& parallel_for) {
  const auto sizes = below(4) == 0 ? std::vector<std::int64_t>{40'001, 5, 70'000} : any_sizes();
  const Pool pool(sizes, 1);
  std::vector<NormSegment> segments;
  double want = 0;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    segments.push_back({sizes[t], pool.pointers[t], pool.types[t]});
    for (std::int64_t i = 0; i < sizes[t]; ++i) want += pool.tensors[t].get(i) * pool.tensors[t].get(i);
  }
  const double got = square_sum(segments, parallel_for);
  expect(std::fabs(got - want) <= 1e-12 * want, "square_sum", got, want);
}

void check_sgd(const ParallelFor& parallel_for) {
  const auto sizes = any_sizes();
  const SgdOptions o{0.01, 0.5, below(2) == 0 ? 0.9 : 0.0, 0.1, 0.2, below(2) == 0, below(2) == 0};
  const Pool pool(sizes, 3);
  std::vector<StepSegment> segments;
  std::vector<std::vector<double>> before;
  std::vector<float> steps;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    const Numbers* of = pool.tensors.data() + t * 3;
    for (int n = 0; n < 3; ++n) {
      auto& copy = before.emplace_back();
      for (std::int64_t i = 0; i < sizes[t]; ++i) copy.push_back(of[n].get(i));
    }
    segments.push_back({sizes[t],
                        of[0].data(),
                        of[1].data(),
                        {o.momentum != 0 ? of[2].data() : nullptr, nullptr, nullptr},
                        nullptr,
                        nullptr,
                        of[0].type(),
                        of[1].type(),
                        of[2].type(),
                        DType::f32,
                        DType::f32});
    steps.push_back(static_cast<float>(below(2)));
  }
  sgd(segments, steps.data(), o, {0.0, false}, parallel_for);
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    for (std::int64_t i = 0; i < sizes[t]; ++i) {
      const double p = before[t * 3][i];
      const double g = (o.maximize ? -0.5 : 0.5) * before[t * 3 + 1][i] + o.weight_decay * p;
      const double decayed = o.momentum * before[t * 3 + 2][i] + (1 - o.dampening) * g;
      const double buffer = o.momentum == 0 || steps[t] == 1 ? g : decayed;
      const double direction = o.momentum != 0 && o.nesterov ? g + o.momentum * buffer : buffer;
      const double want = p - o.lr * direction, got = pool.tensors[t * 3].get(i);
      const double unit = pool.types[t * 3] == DType::bf16 ? 0x1p-7 : 0x1p-9;
      expect(std::fabs(got - want) <= unit * (std::fabs(p) + std::fabs(direction)) + 1e-5, "sgd", got, want);
    }
  }
}

void check_adam(const ParallelFor& parallel_for) {
  const auto sizes = any_sizes();
  const AdamOptions o{0.01, 1.0, 0.9, 0.99, 0.1, 1e-8, below(2) == 0, below(2) == 0, below(2) == 0};
  std::vector<StepSegment> segments;
  std::vector<std::vector<Numbers>> tensors;
  std::vector<std::vector<std::vector<double>>> before;
  std::vector<float> steps;
  for (const auto size : sizes) {
    const DType state = any_type();
    auto& of = tensors.emplace_back();
    of.emplace_back(size, any_type(), any_offset());
    of.emplace_back(size, any_type(), any_offset());
    for (int i = 0; i < 3; ++i) of.emplace_back(size, state, any_offset(), true);
    of.emplace_back(size, any_type(), any_offset());  // the average
    of.emplace_back(size, any_type(), any_offset());  // the copy
    auto& values = before.emplace_back();
    for (const auto& numbers : of) {
      auto& copy = values.emplace_back();
      for (std::int64_t i = 0; i < size; ++i) copy.push_back(numbers.get(i));
    }
    segments.push_back({size,
                        of[0].data(),
                        of[1].data(),
                        {of[2].data(), of[3].data(), o.amsgrad ? of[4].data() : nullptr},
                        below(2) == 0 ? of[5].data() : nullptr,
                        below(2) == 0 ? of[6].data() : nullptr,
                        of[0].type(),
                        of[1].type(),
                        state,
                        of[5].type(),
                        of[6].type()});
    steps.push_back(static_cast<float>(below(9)));
  }
  adam(segments, steps.data(), o, {0.5, below(2) == 0}, parallel_for);
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    for (std::int64_t i = 0; i < sizes[t]; ++i) {
      double p = before[t][0][i], g = o.maximize ? -before[t][1][i] : before[t][1][i];
      if (o.decoupled)
        p *= 1 - o.lr * o.weight_decay;
      else
        g += o.weight_decay * p;
      const double m = o.beta1 * before[t][2][i] + (1 - o.beta1) * g;
      const double v = o.beta2 * before[t][3][i] + (1 - o.beta2) * g * g;
      const double largest = o.amsgrad ? std::max(before[t][4][i], v) : v;
      const double root = std::sqrt(largest) / std::sqrt(1 - std::pow(o.beta2, steps[t]));
      const double change = -o.lr / (1 - std::pow(o.beta1, steps[t])) * m / (root + o.eps);
      const double got = tensors[t][0].get(i);
      const double unit = tensors[t][0].type() == DType::bf16 ? 0x1p-7 : 0x1p-9;
      // Without a second moment the change hangs on eps: what the parameter rounds to says nothing.
      if (largest < 1e-6) continue;
      expect(std::fabs(got - (p + change)) <= unit * (std::fabs(p) + std::fabs(change)) + 1e-5, "adam", got,
             p + change);
    }
  }
}

// A resize in plain loops: of rows (step of a pixel) or of columns.
std::vector<int> resized(const std::vector<int>& pixels, int height, int width, int out, bool along_rows) {
  const ResizeAxis axis = resize_axis(along_rows ? width : height, out);
  const int out_height = along_rows ? height : out, out_width = along_rows ? out : width;
  std::vector<int> result(static_cast<std::size_t>(out_height) * out_width * 3);
  std::vector<int> weights(axis.most);
  for (int place = 0; place < out; ++place) {
    int first = 0;
    const int count = resize_weights(axis, place, first, weights.data());
    for (int other = 0; other < (along_rows ? height : width); ++other) {
      for (int c = 0; c < 3; ++c) {
        int sum = kWeightHalf;
        for (int i = 0; i < count; ++i) {
          const int y = along_rows ? other : first + i, x = along_rows ? first + i : other;
          sum += pixels[(y * width + x) * 3 + c] * weights[i];
        }
        const int y = along_rows ? other : place, x = along_rows ? place : other;
        result[(y * out_width + x) * 3 + c] = sum >> kWeightBits;
      }
    }
  }
  return result;
}

void check_images(const ParallelFor& parallel_for) {
  const int count = 1 + below(5), height = 1 + below(70), width = 1 + below(70);
  std::vector<ImageSource> sources;
  std::vector<std::unique_ptr<std::uint8_t[]>> memory;
  std::vector<std::vector<int>> expected;
  for (int n = 0; n < count; ++n) {
    const int h = 1 + below(60), w = 1 + below(90), gap = below(3) * 5;
    const std::int64_t stride = 3 * w + gap,
                       size = stride * (h - 1) + 3 * w;  // nothing behind the last pixel
    memory.emplace_back(new std::uint8_t[static_cast<std::size_t>(size)]);
    std::vector<int> pixels(static_cast<std::size_t>(h) * w * 3);
    for (std::int64_t i = 0; i < size; ++i) memory.back()[i] = static_cast<std::uint8_t>(below(256));
    for (int i = 0; i < h * w * 3; ++i) pixels[i] = memory.back()[i / (w * 3) * stride + i % (w * 3)];
    const bool flip = below(2) != 0, lower = lowers_first(h, w, height, width);
    sources.push_back(
        {memory.back().get(), stride, h, w, flip, {n == 0 ? 0 : below(32), 1.2f, 0.7f, 1.3f, below(256)}});
    expected.push_back(lower ? resized(resized(pixels, h, w, height, false), height, w, width, true)
                             : resized(resized(pixels, h, w, width, true), h, width, height, false));
  }
  const std::size_t size = static_cast<std::size_t>(height) * width * 3;
  const std::unique_ptr<float[]> out(new float[count * size]);
  transform_images(sources, {out.get(), ImageType::f32, height, width, {1, 1, 1}, {0, 0, 0}}, parallel_for);
  for (int n = 0; n < count; ++n) {
    for (std::size_t i = 0; i < size; ++i) {
      const float got = out[n * size + i];
      expect(got >= 0 && got <= 255, "image", got, 255);
      const std::size_t pixel = i / 3, row = pixel / width, x = pixel % width;
      const std::size_t from = (row * width + (sources[n].flip ? width - 1 - x : x)) * 3 + i % 3;
      if (sources[n].colours.operations == 0)
        expect(got == expected[n][from], "resize", got, expected[n][from]);
    }
  }
}

}  // namespace

int main(int, char** arguments) {
  const int rounds = std::atoi(arguments[1]);
  for (int round = 0; round < rounds; ++round) {
    const ParallelFor parallel_for = threads(1 + below(4));
    check_mix(parallel_for);
    check_gram(parallel_for);
    check_combine(parallel_for);
    check_kth(parallel_for);
    check_square_sum(parallel_for);
    check_sgd(parallel_for);
    check_adam(parallel_for);
    check_images(parallel_for);
  }
  std::puts(cpu_capability());
}
