#include "guard.h"

#include <cstdint>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

// DLPack's C exchange API, by which an object of another library says where its elements lie without an
// allocation: the structures of dlpack.h 1.3 as far as they are read here.
struct Tensor {
  void* data;
  std::int32_t device_type;
  std::int32_t device_id;
  std::int32_t ndim;
  std::uint8_t type_code;
  std::uint8_t type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct ExchangeApi {
  std::uint32_t major;
  std::uint32_t minor;
  ExchangeApi* previous;
  void* allocate;
  void* from_object;
  void* to_object;
  int (*describe)(void* object, Tensor* result);  // sets a Python error and returns -1 where it cannot
  void* stream;
};

using Describe = int (*)(void*, Tensor*);

// How objects of a type are described; null if the type does not say.
Describe describe_of(PyTypeObject* type) {
  const auto capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
  void* pointer = capsule ? PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api") : nullptr;
  PyErr_Clear();
  const auto* api = static_cast<const ExchangeApi*>(pointer);
  return api != nullptr && api->major == 1 ? api->describe : nullptr;
}

// A tensor as it was: where its elements are, and of what kind.
class Place {
 public:
  // Throws where the object's type does not say.
  explicit Place(py::handle object) : type_(Py_TYPE(object.ptr())), describe_(describe_of(type_)) {
    if (describe_ == nullptr) throw py::type_error("a tensor that does not say where it is");
    Tensor tensor;
    if (describe_(object.ptr(), &tensor) != 0) throw py::error_already_set();
    data_ = tensor.data;
    kind_ = tensor;
    sizes_.assign(tensor.shape, tensor.shape + tensor.ndim);
    sizes_.insert(sizes_.end(), tensor.strides, tensor.strides + tensor.ndim);
  }

  // Whether an object is of this kind, and, if `exactly`, in this place.
  bool holds(PyObject* object, bool exactly) const {
    if (Py_TYPE(object) != type_) return false;
    Tensor now;
    if (describe_(object, &now) != 0) {
      PyErr_Clear();
      return false;
    }
    if ((exactly && now.data != data_) || now.device_type != kind_.device_type ||
        now.device_id != kind_.device_id || now.type_code != kind_.type_code ||
        now.type_bits != kind_.type_bits || now.ndim != kind_.ndim)
      return false;
    for (std::int32_t d = 0; d < now.ndim; ++d)
      if (now.shape[d] != sizes_[d] || now.strides[d] != sizes_[now.ndim + d]) return false;
    return true;
  }

 private:
  PyTypeObject* type_;
  Describe describe_;
  void* data_ = nullptr;
  Tensor kind_{};
  std::vector<std::int64_t> sizes_;  // the shape, then the strides
};

struct Watched {
  py::object param;
  Place place;
  py::object grad;  // None if there is none
  std::vector<Place> grad_place;
  bool pinned;
};

class Guard {
 public:
  Guard(const py::list& params, const py::list& pinned) {
    if (params.size() != pinned.size()) throw py::value_error("params and pinned differ in length");
    for (std::size_t i = 0; i < params.size(); ++i) {
      const py::object param = params[i], grad = param.attr("grad");
      Watched watched{param, Place(param), grad, {}, pinned[i].cast<bool>()};
      if (!grad.is_none()) watched.grad_place.emplace_back(grad);
      if (!watched.pinned) watched.grad = py::none();  // does not keep it alive
      watched_.push_back(std::move(watched));
    }
  }

  py::object grads(const py::list& params) const {
    if (params.size() != watched_.size()) return py::none();
    py::list result(watched_.size());
    for (std::size_t i = 0; i < watched_.size(); ++i) {
      const Watched& was = watched_[i];
      PyObject* param = PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i));
      if (param != was.param.ptr() || !was.place.holds(param, true)) return py::none();
      PyObject* grad = PyObject_GetAttr(param, name_.ptr());
      if (grad == nullptr) throw py::error_already_set();
      PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i), grad);  // takes the reference
      if (grad == Py_None) {
        if (!was.grad_place.empty()) return py::none();
      } else if (was.grad_place.empty() || (was.pinned && grad != was.grad.ptr()) ||
                 !was.grad_place[0].holds(grad, was.pinned)) {
        return py::none();
      }
    }
    return std::move(result);
  }

 private:
  std::vector<Watched> watched_;
  py::str name_ = py::reinterpret_steal<py::str>(PyUnicode_InternFromString("grad"));
};

}  // namespace

void ratfast::define_guard(py::module_& module) {
  py::class_<Guard>(
      module, "Guard",
      "Remembers where parameters and their gradients are.\n\n"
      "params: tensors; pinned: for each, whether its gradient has to stay the same object in the "
      "same place, or just of the same shape, strides, element type and device. Raises TypeError "
      "for objects that do not say where they are in DLPack's way.")
      .def(py::init<const py::list&, const py::list&>(), py::arg("params"), py::arg("pinned"))
      .def("grads", &Guard::grads, py::arg("params"),
           "The gradients of the parameters, None where there is none; None if anything is not as it was.");
}
