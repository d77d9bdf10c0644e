// The Python module `_core`: averages models in plain memory, such as mapped files, hashes, and watches where
// tensors are, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "../core/capability.h"
#include "../core/combine.h"
#include "../core/gram.h"
#include "../core/kth.h"
#include "../core/memory.h"
#include "../core/mix.h"
#include "buffers.h"
#include "guard.h"
#include "sha256.h"

namespace py = pybind11;

namespace {

using namespace ratfast;

DType dtype_named(const std::string& name) {
  if (name == "float64") return DType::f64;
  if (name == "float32") return DType::f32;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  throw py::type_error("cannot average elements of type " + name);
}

// The buffers of several models, tensor-major, held for as long as this lives.
struct Buffers {
  std::vector<py::buffer_info> held;
  std::vector<void*> pointers;
  std::vector<DType> types;
  std::vector<std::int64_t> numels;  // per tensor

  Buffers(const std::vector<std::vector<py::buffer>>& models,
          const std::vector<std::vector<std::string>>& names, std::size_t per_model, bool writable) {
    if (names.size() != models.size()) throw py::value_error("one list of element types per model is needed");
    for (std::size_t m = 0; m < models.size(); ++m)
      if (models[m].size() != per_model || names[m].size() != per_model)
        throw py::value_error("models differ in their number of tensors");
    for (std::size_t t = 0; t < per_model; ++t) {
      for (std::size_t m = 0; m < models.size(); ++m) {
        held.push_back(bytes_in_a_row(models[m][t], writable));
        const auto& info = held.back();
        const DType type = dtype_named(names[m][t]);
        if (info.size % item_size(type) != 0)
          throw py::value_error("a buffer of tensor " + std::to_string(t) + " does not hold whole elements");
        const std::int64_t numel = info.size / item_size(type);
        if (m == 0) numels.push_back(numel);
        if (numels[t] != numel)
          throw py::value_error("the buffers of tensor " + std::to_string(t) +
                                " differ in their number of elements");
        pointers.push_back(info.ptr);
        types.push_back(type);
      }
    }
  }
};

using Models = std::vector<std::vector<py::buffer>>;
using Names = std::vector<std::vector<std::string>>;
template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

bool mix_buffers(const Models& outputs, const Models& sources, const std::vector<std::string>& dtypes_out,
                 const Names& dtypes_in, const std::vector<std::vector<double>>& weights, int num_threads) {
  const std::size_t num_outputs = outputs.size(), num_sources = sources.size();
  if (num_outputs == 0) return true;
  if (num_sources == 0) throw py::value_error("sources is empty, so there is nothing to average");
  std::vector<double> values;  // not an array, which would import numpy
  for (const auto& row : weights) {
    if (weights.size() != num_outputs || row.size() != num_sources)
      throw py::value_error("weights must have one row per output and one column per source");
    values.insert(values.end(), row.begin(), row.end());
  }
  if (weights.empty())
    throw py::value_error("weights must have one row per output and one column per source");
  const std::size_t per_model = outputs[0].size();
  const Buffers targets(outputs, std::vector(num_outputs, dtypes_out), per_model, true);
  const Buffers models(sources, dtypes_in, per_model, false);
  if (targets.numels != models.numels)
    throw py::value_error("outputs and sources differ in their number of elements");
  std::vector<MixSegment> segments;
  for (std::size_t t = 0; t < per_model; ++t) {
    segments.push_back({targets.numels[t], models.pointers.data() + t * num_sources,
                        models.types.data() + t * num_sources, targets.pointers.data() + t * num_outputs,
                        targets.types.data() + t * num_outputs});
  }
  const char* problem =
      memory_problem(segments, static_cast<int>(num_outputs), static_cast<int>(num_sources));
  if (problem != nullptr) throw py::value_error(problem);
  py::gil_scoped_release release;
  return mix(segments, static_cast<int>(num_outputs), static_cast<int>(num_sources), values.data(),
             threads(num_threads));
}

// The values of an array of a given shape, or null if there is none.
template <class T>
const T* values_of(const std::optional<Array<T>>& array, const std::vector<std::size_t>& shape,
                   const char* name) {
  if (!array.has_value()) return nullptr;
  bool fits = static_cast<std::size_t>(array->ndim()) == shape.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = static_cast<std::size_t>(array->shape(static_cast<py::ssize_t>(i))) == shape[i];
  if (!fits) throw py::value_error(std::string(name) + " has the wrong shape");
  return array->data();
}

py::array_t<double> gram_buffers(const Models& sources, const Names& dtypes, int num_threads) {
  const std::size_t num_sources = sources.size();
  if (num_sources == 0) throw py::value_error("sources is empty, so there are no inner products");
  const std::size_t per_model = sources[0].size();
  const Buffers models(sources, dtypes, per_model, false);
  std::vector<GramSegment> segments;
  for (std::size_t t = 0; t < per_model; ++t)
    segments.push_back(
        {models.numels[t], models.pointers.data() + t * num_sources, models.types.data() + t * num_sources});
  py::array_t<double> result({per_model, num_sources, num_sources});
  double* values = result.mutable_data();
  {
    py::gil_scoped_release release;
    gram(segments, static_cast<int>(num_sources), values, threads(num_threads));
  }
  return result;
}

bool combine_buffers(const std::vector<py::buffer>& outputs, const Models& sources,
                     const std::optional<std::vector<py::buffer>>& bases,
                     const std::vector<std::string>& dtypes_out, const Names& dtypes_in,
                     const std::optional<std::vector<std::string>>& dtypes_base, const std::string& kind,
                     const Array<double>& weights, const std::optional<Array<float>>& thresholds,
                     const std::optional<Array<double>>& densities,
                     const std::optional<Array<std::uint64_t>>& keys,
                     const std::optional<Array<std::int64_t>>& streams,
                     const std::optional<Array<std::int64_t>>& first, std::uint64_t seed, double scale,
                     bool normalize, int num_threads) {
  const auto named = combine_kind_named(kind);
  if (!named.has_value()) throw py::value_error("unknown kind of combination: " + kind);
  const std::size_t lists = sources.size(), per_model = outputs.size();
  const bool fisher = *named == CombineKind::fisher;
  const std::size_t models = fisher ? lists / 2 : lists;
  if (models == 0 || (fisher && lists % 2 != 0))
    throw py::value_error("sources do not hold the models that " + kind + " needs");
  if (bases.has_value() != dtypes_base.has_value())
    throw py::value_error("bases and their element types go together");
  const Buffers targets({outputs}, {dtypes_out}, per_model, true);
  const Buffers read(sources, dtypes_in, per_model, false);
  const Buffers origins = bases.has_value() ? Buffers({*bases}, {*dtypes_base}, per_model, false)
                                            : Buffers({}, {}, per_model, false);
  if (targets.numels != read.numels || (bases.has_value() && origins.numels != targets.numels))
    throw py::value_error("outputs, sources and bases differ in their number of elements");
  const std::optional<Array<double>> given_weights(weights);
  const CombineOptions options{*named,
                               static_cast<int>(models),
                               values_of(given_weights, {models}, "weights"),
                               values_of(densities, {models}, "densities"),
                               values_of(streams, {models}, "streams"),
                               seed,
                               scale,
                               normalize};
  const float* trims = values_of(thresholds, {per_model, models}, "thresholds");
  const std::uint64_t* names = values_of(keys, {per_model}, "keys");
  const std::int64_t* places = values_of(first, {per_model}, "first");
  if (options.densities != nullptr && names == nullptr) throw py::value_error("densities need keys");
  std::vector<CombineSegment> segments;
  for (std::size_t t = 0; t < per_model; ++t)
    segments.push_back({targets.numels[t], read.pointers.data() + t * lists, read.types.data() + t * lists,
                        bases.has_value() ? origins.pointers[t] : nullptr,
                        bases.has_value() ? origins.types[t] : DType::f32, targets.pointers[t],
                        targets.types[t], trims == nullptr ? nullptr : trims + t * models,
                        names == nullptr ? 0 : names[t], places == nullptr ? 0 : places[t]});
  const char* problem = memory_problem(segments, static_cast<int>(lists));
  if (problem != nullptr) throw py::value_error(problem);
  py::gil_scoped_release release;
  return combine(segments, options, threads(num_threads));
}

py::array_t<float> kth_magnitudes_of_buffers(const std::vector<py::buffer>& sources,
                                             const std::optional<std::vector<py::buffer>>& bases,
                                             const std::vector<std::string>& dtypes,
                                             const std::optional<std::vector<std::string>>& dtypes_base,
                                             const Array<std::int64_t>& counts, bool together,
                                             int num_threads) {
  const std::size_t tensors = sources.size(), groups = together ? 1 : tensors;
  if (bases.has_value() != dtypes_base.has_value())
    throw py::value_error("bases and their element types go together");
  const Buffers read({sources}, {dtypes}, tensors, false);
  const Buffers origins =
      bases.has_value() ? Buffers({*bases}, {*dtypes_base}, tensors, false) : Buffers({}, {}, tensors, false);
  if (bases.has_value() && origins.numels != read.numels)
    throw py::value_error("sources and bases differ in their number of elements");
  const std::optional<Array<std::int64_t>> given(counts);
  const std::int64_t* numbers = values_of(given, {groups}, "counts");
  std::vector<MagnitudeSegment> segments;
  for (std::size_t t = 0; t < tensors; ++t)
    segments.push_back({read.numels[t], read.pointers[t], read.types[t],
                        bases.has_value() ? origins.pointers[t] : nullptr,
                        bases.has_value() ? origins.types[t] : DType::f32});
  py::array_t<float> result(static_cast<py::ssize_t>(groups));
  float* found = result.mutable_data();
  {
    py::gil_scoped_release release;
    const ParallelFor parallel_for = threads(num_threads);
    for (std::size_t g = 0; g < groups; ++g)
      found[g] = together ? kth_magnitude(segments, numbers[g], parallel_for)
                          : kth_magnitude({segments[g]}, numbers[g], parallel_for);
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Averaging of models in plain memory, without torch.";
  module.def(
      "mix", &mix_buffers, py::arg("outputs"), py::arg("sources"), py::arg("dtypes_out"),
      py::arg("dtypes_in"), py::arg("weights"), py::arg("threads"),
      "Writes weighted sums of N models of T tensors each.\n\n"
      "outputs: K lists of T writable buffers of bytes; sources: N lists of T buffers; dtypes_out: T names; "
      "dtypes_in: N lists of T names; weights: K lists of N numbers; threads: how many to use. An output may "
      "be the "
      "memory of one source. Sums are held in float64. Returns whether all outputs are finite. Raises "
      "ValueError where buffers do not fit together.");
  module.def("gram", &gram_buffers, py::arg("sources"), py::arg("dtypes"), py::arg("threads"),
             "The inner products (T, N, N) of N models of T tensors each, held in float64.\n\n"
             "sources: N lists of T buffers of bytes; dtypes: N lists of T names.");
  module.def(
      "combine", &combine_buffers, py::arg("outputs"), py::arg("sources"), py::arg("bases"),
      py::arg("dtypes_out"), py::arg("dtypes_in"), py::arg("dtypes_base"), py::arg("kind"),
      py::arg("weights"), py::arg("thresholds"), py::arg("densities"), py::arg("keys"), py::arg("streams"),
      py::arg("first"), py::arg("seed"), py::arg("scale"), py::arg("normalize"), py::arg("threads"),
      "Reduces N models to one, element by element; ratfast.ops.combine_ has the formulas.\n\n"
      "outputs: T writable buffers of bytes; sources: N lists of T buffers (2 N for fisher); bases: T "
      "buffers "
      "or None; dtypes_out: T names; dtypes_in: N lists of T names; dtypes_base: T names or None; weights: "
      "(N,); thresholds: (T, N) or None; densities: (N,) or None; keys: (T,) or None; streams: (N,) or None; "
      "first: (T,) or None, the place of each buffer's first element within its tensor, for the draws. "
      "Returns whether all outputs are finite. Raises ValueError where buffers do not fit together.");
  module.def("kth_magnitudes", &kth_magnitudes_of_buffers, py::arg("sources"), py::arg("bases"),
             py::arg("dtypes"), py::arg("dtypes_base"), py::arg("counts"), py::arg("together"),
             py::arg("threads"),
             "The counts[t]-th largest |float32(x - base)| of each tensor, or of all together; float32.\n\n"
             "sources: T buffers of bytes; bases: T buffers or None; counts: (T,), or (1,) if together.");
  define_sha256(module);
  define_guard(module);
  module.def("cpu_capability", &cpu_capability, "The instruction set in use: avx512, avx2 or default.");
}
