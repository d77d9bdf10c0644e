// What the CPU and the CUDA library share: tensors as raw memory, and the last line of defence. The Python
// wrappers rely on these checks, and only find better words for what was refused.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/combine.h"
#include "../core/leaf.h"
#include "../core/memory.h"

namespace ratfast {

using torch::stable::Tensor;
using Tensors = const std::vector<Tensor>&;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return DType::f64;
    case torch::headeronly::ScalarType::Float:
      return DType::f32;
    case torch::headeronly::ScalarType::Half:
      return DType::f16;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::bf16;
    default:
      STD_TORCH_CHECK(false, "ratfast: tensors must be float64, float32, float16 or bfloat16");
  }
}

// Where a tensor lies in memory, apart from its address.
struct Geometry {
  std::int64_t numel;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> strides;

  explicit Geometry(const Tensor& tensor) : numel(tensor.numel()) {
    const auto all_sizes = tensor.sizes(), all_strides = tensor.strides();
    sizes.assign(all_sizes.begin(), all_sizes.end());
    strides.assign(all_strides.begin(), all_strides.end());
  }

  // Strides count where they matter: not along sizes of 1, nor in an empty tensor.
  bool same(const Tensor& tensor) const {
    const auto other_sizes = tensor.sizes(), other_strides = tensor.strides();
    if (!std::equal(sizes.begin(), sizes.end(), other_sizes.begin(), other_sizes.end())) return false;
    for (std::size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] != 1 && numel != 0 && strides[i] != other_strides[i]) return false;
    return true;
  }

  bool dense() const {
    if (numel == 0) return true;
    std::vector<std::pair<std::int64_t, std::int64_t>> steps;
    for (std::size_t i = 0; i < sizes.size(); ++i)
      if (sizes[i] != 1) steps.emplace_back(strides[i], sizes[i]);
    std::sort(steps.begin(), steps.end());
    std::int64_t expected = 1;
    for (const auto& [stride, size] : steps) {
      if (stride != expected) return false;
      expected *= size;
    }
    return true;
  }
};

// Checks the tensors of all lists, which hold whole models of `per_model` tensors each.
inline void check_alike(std::size_t per_model, const std::vector<const std::vector<Tensor>*>& lists) {
  const Tensor& first = lists[0]->front();
  const bool cuda = first.is_cuda();
  const auto device = first.get_device_index();
  for (std::size_t t = 0; t < per_model; ++t) {
    const Geometry geometry((*lists[0])[t]);
    STD_TORCH_CHECK(geometry.dense(), "ratfast: tensor ", t, " is not dense in memory");
    for (const auto* list : lists) {
      for (std::size_t i = t; i < list->size(); i += per_model) {
        const Tensor& tensor = (*list)[i];
        STD_TORCH_CHECK(geometry.same(tensor), "ratfast: tensors at place ", t,
                        " differ in sizes or strides");
        STD_TORCH_CHECK(tensor.is_cuda() == cuda && tensor.get_device_index() == device,
                        "ratfast: tensors are on several devices");
      }
    }
  }
}

// The arguments of mix_, checked, as segments that point into the vectors here.
class MixArguments {
 public:
  MixArguments(Tensors outputs, Tensors sources, const Tensor& weights) {
    STD_TORCH_CHECK(weights.dim() == 2 && weights.is_cpu() && weights.is_contiguous() &&
                        weights.scalar_type() == torch::headeronly::ScalarType::Double,
                    "ratfast: weights must be a contiguous float64 matrix on the CPU");
    num_outputs = static_cast<int>(weights.size(0));
    num_sources = static_cast<int>(weights.size(1));
    STD_TORCH_CHECK(num_outputs > 0 && num_sources > 0, "ratfast: weights must not be empty");
    weight_values = weights.const_data_ptr<double>();
    const std::size_t per_model = sources.size() / num_sources;
    STD_TORCH_CHECK(per_model > 0 && sources.size() == per_model * num_sources &&
                        outputs.size() == per_model * num_outputs,
                    "ratfast: the lists hold ", outputs.size(), " outputs and ", sources.size(),
                    " sources, which does not fit weights of ", num_outputs, " by ", num_sources);
    check_alike(per_model, {&outputs, &sources});
    const auto gather = [per_model](Tensors tensors, std::size_t models, auto& pointers, auto& types) {
      for (std::size_t t = 0; t < per_model; ++t) {
        for (std::size_t model = 0; model < models; ++model) {
          const Tensor& tensor = tensors[model * per_model + t];
          pointers.push_back(tensor.data_ptr());
          types.push_back(dtype_of(tensor));
        }
      }
    };
    gather(outputs, num_outputs, output_pointers_, output_types_);
    gather(sources, num_sources, source_pointers_, source_types_);
    for (std::size_t t = 0; t < per_model; ++t) {
      segments.push_back({outputs[t].numel(), source_pointers_.data() + t * num_sources,
                          source_types_.data() + t * num_sources, output_pointers_.data() + t * num_outputs,
                          output_types_.data() + t * num_outputs});
    }
    const char* problem = memory_problem(segments, num_outputs, num_sources);
    STD_TORCH_CHECK(problem == nullptr, "ratfast: ", problem);
  }
  MixArguments(const MixArguments&) = delete;
  MixArguments& operator=(const MixArguments&) = delete;

  std::vector<MixSegment> segments;
  int num_outputs;
  int num_sources;
  const double* weight_values;

 private:
  std::vector<const void*> source_pointers_;
  std::vector<void*> output_pointers_;
  std::vector<DType> source_types_;
  std::vector<DType> output_types_;
};

// Tensors as raw memory, tensor-major: of each place all models.
struct TensorMajor {
  std::vector<const void*> pointers;
  std::vector<DType> types;

  TensorMajor(Tensors tensors, std::size_t per_model) {
    for (std::size_t t = 0; t < per_model; ++t) {
      for (std::size_t i = t; i < tensors.size(); i += per_model) {
        pointers.push_back(tensors[i].data_ptr());
        types.push_back(dtype_of(tensors[i]));
      }
    }
  }
};

// The arguments of gram, checked.
class GramArguments {
 public:
  GramArguments(Tensors sources, std::int64_t models)
      : num_sources(static_cast<int>(models)), memory_(sources, checked(sources, models)) {
    const std::size_t per_model = sources.size() / num_sources;
    for (std::size_t t = 0; t < per_model; ++t)
      segments.push_back({sources[t].numel(), memory_.pointers.data() + t * num_sources,
                          memory_.types.data() + t * num_sources});
  }
  GramArguments(const GramArguments&) = delete;
  GramArguments& operator=(const GramArguments&) = delete;

  std::vector<GramSegment> segments;
  int num_sources;

 private:
  static std::size_t checked(Tensors sources, std::int64_t models) {
    STD_TORCH_CHECK(models > 0 && !sources.empty() && sources.size() % models == 0, "ratfast: the list of ",
                    sources.size(), " sources does not hold ", models, " models");
    check_alike(sources.size() / models, {&sources});
    return sources.size() / models;
  }

  TensorMajor memory_;
};

// A vector of numbers on the CPU, or null.
template <class T>
const T* numbers(const std::optional<Tensor>& tensor, torch::headeronly::ScalarType type, std::int64_t count,
                 const char* name) {
  if (!tensor.has_value()) return nullptr;
  STD_TORCH_CHECK(tensor->is_cpu() && tensor->is_contiguous() && tensor->scalar_type() == type &&
                      tensor->numel() == count,
                  "ratfast: ", name, " must be ", count, " contiguous numbers of the right type on the CPU");
  return tensor->template const_data_ptr<T>();
}

// The arguments of combine_, checked.
class CombineArguments {
 public:
  CombineArguments(Tensors outputs, Tensors sources, Tensors bases, const std::string& kind,
                   const Tensor& weights, const std::optional<Tensor>& thresholds,
                   const std::optional<Tensor>& densities, const std::optional<Tensor>& keys,
                   const std::optional<Tensor>& streams, std::int64_t seed, double scale, bool normalize)
      : memory_(sources, checked(outputs, sources, bases)) {
    using torch::headeronly::ScalarType;
    const auto named = combine_kind_named(kind);
    STD_TORCH_CHECK(named.has_value(), "ratfast: unknown kind of combination: ", kind);
    const std::size_t per_model = outputs.size(), lists = sources.size() / per_model;
    const int models = static_cast<int>(*named == CombineKind::fisher ? lists / 2 : lists);
    STD_TORCH_CHECK(models > 0 && (*named != CombineKind::fisher || lists % 2 == 0),
                    "ratfast: the sources do not hold models for ", kind);
    const auto tensors = static_cast<std::int64_t>(per_model);
    options = {*named,
               models,
               numbers<double>(weights, ScalarType::Double, models, "weights"),
               numbers<double>(densities, ScalarType::Double, models, "densities"),
               numbers<std::int64_t>(streams, ScalarType::Long, models, "streams"),
               static_cast<std::uint64_t>(seed),
               scale,
               normalize};
    const float* trims = numbers<float>(thresholds, ScalarType::Float, tensors * models, "thresholds");
    const auto* names = numbers<std::int64_t>(keys, ScalarType::Long, tensors, "keys");
    STD_TORCH_CHECK(options.densities == nullptr || names != nullptr, "ratfast: densities need keys");
    for (std::size_t t = 0; t < per_model; ++t) {
      const bool based = !bases.empty();
      segments.push_back({outputs[t].numel(), memory_.pointers.data() + t * lists,
                          memory_.types.data() + t * lists, based ? bases[t].data_ptr() : nullptr,
                          based ? dtype_of(bases[t]) : DType::f32, outputs[t].data_ptr(),
                          dtype_of(outputs[t]), trims == nullptr ? nullptr : trims + t * models,
                          static_cast<std::uint64_t>(names == nullptr ? 0 : names[t]), 0});
    }
    const char* problem = memory_problem(segments, static_cast<int>(lists));
    STD_TORCH_CHECK(problem == nullptr, "ratfast: ", problem);
  }
  CombineArguments(const CombineArguments&) = delete;
  CombineArguments& operator=(const CombineArguments&) = delete;

  std::vector<CombineSegment> segments;
  CombineOptions options;

 private:
  static std::size_t checked(Tensors outputs, Tensors sources, Tensors bases) {
    const std::size_t count = outputs.size();
    STD_TORCH_CHECK(count > 0 && !sources.empty() && sources.size() % count == 0 &&
                        (bases.empty() || bases.size() == count),
                    "ratfast: the lists of outputs, sources and bases do not fit together");
    check_alike(count, {&outputs, &sources, &bases});
    return count;
  }

  TensorMajor memory_;
};

}  // namespace ratfast
