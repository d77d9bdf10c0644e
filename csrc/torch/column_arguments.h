// The arguments of gram and combine_, checked, as segments that point into the vectors here.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "../core/columns.h"
#include "common.h"

namespace ratfast {

// The tensors of N models (model-major) by tensor: of each tensor all models.
struct ByTensor {
  ByTensor() = default;
  ByTensor(Tensors tensors, std::size_t per_model) {
    for (std::size_t t = 0; t < per_model; ++t) {
      for (std::size_t i = t; i < tensors.size(); i += per_model) {
        pointers.push_back(tensors[i].data_ptr());
        types.push_back(dtype_of(tensors[i]));
      }
    }
  }

  std::vector<const void*> pointers;
  std::vector<DType> types;
};

class GramArguments {
 public:
  GramArguments(Tensors sources, std::int64_t count) : models(static_cast<int>(count)) {
    STD_TORCH_CHECK(count > 0 && !sources.empty() && sources.size() % count == 0, "ratfast: ", sources.size(),
                    " sources do not make ", count, " models");
    const std::size_t per_model = sources.size() / count;
    check_alike(per_model, {&sources});
    by_tensor_ = ByTensor(sources, per_model);
    for (std::size_t t = 0; t < per_model; ++t)
      segments.push_back(
          {sources[t].numel(), by_tensor_.pointers.data() + t * count, by_tensor_.types.data() + t * count});
  }
  GramArguments(const GramArguments&) = delete;
  GramArguments& operator=(const GramArguments&) = delete;

  int models;
  std::vector<GramSegment> segments;

 private:
  ByTensor by_tensor_;
};

// Numbers on the CPU, or null where the argument is left out.
template <class T>
const T* numbers_of(const std::optional<Tensor>& tensor, torch::headeronly::ScalarType type,
                    std::size_t count, const char* name) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == type &&
                      tensor->numel() == static_cast<std::int64_t>(count),
                  "ratfast: ", name, " must be ", count,
                  " contiguous numbers on the CPU, of their element type");
  return tensor->const_data_ptr<T>();
}

inline CombineKind combine_kind(std::string_view name) {
  constexpr std::string_view names[] = {"min", "max", "geometric", "fisher", "sum", "elect"};
  const auto* found = std::find(std::begin(names), std::end(names), name);
  STD_TORCH_CHECK(found != std::end(names), "ratfast: there is no such kind of combination");
  return static_cast<CombineKind>(found - names);
}

class CombineArguments {
 public:
  CombineArguments(Tensors outputs, Tensors sources, Tensors bases, const std::string& kind,
                   const Tensor& weights, const std::optional<Tensor>& thresholds,
                   const std::optional<Tensor>& densities, const std::optional<Tensor>& keys,
                   const std::optional<Tensor>& streams, std::int64_t seed, double scale, bool normalize) {
    using torch::headeronly::ScalarType;
    const std::size_t count = outputs.size(), models = weights.numel();
    options.kind = combine_kind(kind);
    const std::size_t lists = options.kind == CombineKind::fisher ? 2 * models : models;
    STD_TORCH_CHECK(count > 0 && models > 0 && sources.size() == count * lists &&
                        (bases.empty() || bases.size() == count),
                    "ratfast: the lists of outputs, sources and bases do not fit the weights");
    check_alike(count, {&outputs, &sources, &bases});
    options.models = static_cast<int>(models);
    options.weights = numbers_of<double>(weights, ScalarType::Double, models, "weights");
    options.densities = numbers_of<double>(densities, ScalarType::Double, models, "densities");
    options.streams = numbers_of<std::int64_t>(streams, ScalarType::Long, models, "streams");
    options.seed = static_cast<std::uint64_t>(seed);
    options.scale = scale;
    options.normalize = normalize;
    const auto* limits = numbers_of<float>(thresholds, ScalarType::Float, count * models, "thresholds");
    const auto* names = numbers_of<std::int64_t>(keys, ScalarType::Long, count, "keys");
    by_tensor_ = ByTensor(sources, count);
    for (std::size_t t = 0; t < count; ++t)
      segments.push_back({outputs[t].numel(), by_tensor_.pointers.data() + t * lists,
                          by_tensor_.types.data() + t * lists, bases.empty() ? nullptr : bases[t].data_ptr(),
                          bases.empty() ? DType::f32 : dtype_of(bases[t]), outputs[t].data_ptr(),
                          dtype_of(outputs[t]), limits == nullptr ? nullptr : limits + t * models,
                          static_cast<std::uint64_t>(names == nullptr ? t : names[t]), 0});
    check_memory(lists);
  }
  CombineArguments(const CombineArguments&) = delete;
  CombineArguments& operator=(const CombineArguments&) = delete;

  std::vector<CombineSegment> segments;
  CombineOptions options;

 private:
  // The rule of mix: the base counts as one more source.
  void check_memory(std::size_t lists) {
    std::vector<const void*> sources;
    std::vector<DType> types;
    std::vector<MixSegment> spans;
    sources.reserve(segments.size() * (lists + 1));
    types.reserve(segments.size() * (lists + 1));
    const std::size_t read = lists + (segments[0].base != nullptr);
    for (auto& s : segments) {
      const std::size_t first = sources.size();
      sources.insert(sources.end(), s.sources, s.sources + lists);
      types.insert(types.end(), s.source_types, s.source_types + lists);
      if (s.base != nullptr) {
        sources.push_back(s.base);
        types.push_back(s.base_type);
      }
      spans.push_back({s.numel, sources.data() + first, types.data() + first, &s.output, &s.output_type});
    }
    const char* problem = memory_problem(spans, 1, static_cast<int>(read));
    STD_TORCH_CHECK(problem == nullptr, "ratfast: ", problem);
  }

  ByTensor by_tensor_;
};

}  // namespace ratfast
