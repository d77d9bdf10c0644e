// The Python module `_core`: mixes models in plain memory, such as mapped files, without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../core/capability.h"
#include "../core/memory.h"
#include "../core/mix.h"

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
        held.push_back(models[m][t].request(writable));
        const auto& info = held.back();
        if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1))
          throw py::value_error("buffers must be contiguous bytes of one dimension");
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

void mix_buffers(const std::vector<std::vector<py::buffer>>& outputs,
                 const std::vector<std::vector<py::buffer>>& sources,
                 const std::vector<std::string>& dtypes_out,
                 const std::vector<std::vector<std::string>>& dtypes_in,
                 const py::array_t<double, py::array::c_style | py::array::forcecast>& weights,
                 int num_threads) {
  const std::size_t num_outputs = outputs.size(), num_sources = sources.size();
  if (num_outputs == 0) return;
  if (num_sources == 0) throw py::value_error("sources is empty, so there is nothing to average");
  if (weights.ndim() != 2 || static_cast<std::size_t>(weights.shape(0)) != num_outputs ||
      static_cast<std::size_t>(weights.shape(1)) != num_sources)
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
  const double* values = weights.data();
  py::gil_scoped_release release;
  mix(segments, static_cast<int>(num_outputs), static_cast<int>(num_sources), values, threads(num_threads));
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "Averaging of models in plain memory, without torch.";
  module.def(
      "mix", &mix_buffers, py::arg("outputs"), py::arg("sources"), py::arg("dtypes_out"),
      py::arg("dtypes_in"), py::arg("weights"), py::arg("threads"),
      "Writes weighted sums of N models of T tensors each.\n\n"
      "outputs: K lists of T writable buffers of bytes; sources: N lists of T buffers; dtypes_out: T names; "
      "dtypes_in: N lists of T names; weights: (K, N); threads: how many to use. An output may be the "
      "memory of one source. Raises ValueError where buffers do not fit together.");
  module.def("cpu_capability", &cpu_capability, "The instruction set in use: avx512, avx2 or default.");
}
