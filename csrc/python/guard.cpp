#include "guard.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/step.h"

namespace py = pybind11;

namespace {

using namespace ratfast;

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

// How the attribute `grad` of a type's objects is read: by its own function, which spares the search for it,
// or by name where that is not its kind.
class GradOf {
 public:
  explicit GradOf(PyTypeObject* type) {
    const auto found =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name().ptr()));
    PyErr_Clear();
    if (found && Py_TYPE(found.ptr()) == &PyGetSetDescr_Type)
      attribute_ = reinterpret_cast<PyGetSetDescrObject*>(found.ptr())->d_getset;
  }

  // A new reference, or null with a Python error set.
  PyObject* operator()(PyObject* object) const {
    return attribute_ == nullptr ? PyObject_GetAttr(object, name().ptr())
                                 : attribute_->get(object, attribute_->closure);
  }

 private:
  static const py::str& name() {
    static const auto* name = new py::str(py::reinterpret_steal<py::str>(PyUnicode_InternFromString("grad")));
    return *name;
  }

  const PyGetSetDef* attribute_ = nullptr;
};

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

  // Whether an object is of this kind, and, if `exactly`, in this place; `now` is where it is.
  bool holds(PyObject* object, bool exactly, Tensor& now) const {
    if (Py_TYPE(object) != type_) return false;
    if (describe_(object, &now) != 0) {
      PyErr_Clear();
      return false;
    }
    if ((exactly && now.data != data_) || now.byte_offset != kind_.byte_offset ||
        now.device_type != kind_.device_type || now.device_id != kind_.device_id ||
        now.type_code != kind_.type_code || now.type_bits != kind_.type_bits || now.ndim != kind_.ndim)
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

// The segments of a step, as an operator reads them from a tensor of bytes: csrc/torch/step_arguments.h.
class Table {
 public:
  Table(py::object owner, std::uintptr_t address, std::size_t count)
      : owner_(std::move(owner)), segments_(reinterpret_cast<StepSegment*>(address)), count_(count) {
    std::vector<StepSegment> others(segments_, segments_ + count_);
    for (StepSegment& s : others) s.grad = nullptr;
    others_ = memory_spans(others);
  }

  // Sets where a gradient is.
  void put(std::size_t place, void* grad) {
    if (segments_[place].grad == grad) return;
    segments_[place].grad = grad;
    moved_ = true;
  }

  // Whether the gradients share memory neither with each other nor with what is stepped.
  bool apart() {
    if (!moved_) return true;
    std::vector<Span> grads;
    for (std::size_t t = 0; t < count_; ++t) {
      const StepSegment& s = segments_[t];
      if (s.numel != 0) grads.push_back(span_of(s.grad, s.grad_type, s.numel));
    }
    std::sort(grads.begin(), grads.end());
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (i > 0 && grads[i].first < grads[i - 1].second) return false;
      const auto next = std::lower_bound(others_.begin(), others_.end(), Span{grads[i].second, 0});
      if (next != others_.begin() && std::prev(next)->second > grads[i].first) return false;
    }
    moved_ = false;
    return true;
  }

 private:
  py::object owner_;
  StepSegment* segments_;
  std::size_t count_;
  std::vector<Span> others_;  // of all but the gradients, in order
  bool moved_ = true;
};

struct Watched {
  py::object param;
  Place place;
  GradOf grad_of;
  py::object grad;  // None if there is none
  std::vector<Place> grad_place;
  bool pinned;
  int table;  // that holds where its gradient is, or -1
  std::size_t segment;
};

class Guard {
 public:
  Guard(const py::list& params, const py::list& pinned) {
    if (params.size() != pinned.size()) throw py::value_error("params and pinned differ in length");
    for (std::size_t i = 0; i < params.size(); ++i) {
      const py::object param = params[i], grad = param.attr("grad");
      Watched watched{param, Place(param), GradOf(Py_TYPE(param.ptr())), grad, {}, pinned[i].cast<bool>(), -1,
                      0};
      if (!grad.is_none()) watched.grad_place.emplace_back(grad);
      if (!watched.pinned) watched.grad = py::none();  // does not keep it alive
      watched_.push_back(std::move(watched));
    }
  }

  void keep(py::object owner, std::uintptr_t address, std::size_t count, const py::dict& places,
            const py::list& states) {
    tables_.emplace_back(std::move(owner), address, count);
    for (const auto& [index, place] : places) {
      Watched& watched = watched_.at(index.cast<std::size_t>());
      watched.table = static_cast<int>(tables_.size()) - 1;
      watched.segment = place.cast<std::size_t>();
      if (watched.segment >= count) throw py::index_error("no such segment");
    }
    for (const py::handle state : states)
      states_.emplace_back(py::reinterpret_borrow<py::object>(state), Place(state));
  }

  py::object grads(const py::list& params) {
    if (params.size() != watched_.size()) return py::none();
    py::list result(watched_.size());
    Tensor now;
    for (std::size_t i = 0; i < watched_.size(); ++i) {
      const Watched& was = watched_[i];
      PyObject* param = PyList_GET_ITEM(params.ptr(), static_cast<Py_ssize_t>(i));
      if (param != was.param.ptr() || !was.place.holds(param, true, now)) return py::none();
      PyObject* grad = was.grad_of(param);
      if (grad == nullptr) throw py::error_already_set();
      PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(i), grad);  // takes the reference
      if (grad == Py_None) {
        if (!was.grad_place.empty()) return py::none();
        continue;
      }
      if (was.grad_place.empty() || (was.pinned && grad != was.grad.ptr()) ||
          !was.grad_place[0].holds(grad, was.pinned, now))
        return py::none();
      if (was.table >= 0)
        tables_[static_cast<std::size_t>(was.table)].put(was.segment,
                                                         static_cast<char*>(now.data) + now.byte_offset);
    }
    for (const auto& [state, place] : states_)
      if (!place.holds(state.ptr(), true, now)) return py::none();
    for (Table& table : tables_)
      if (!table.apart()) return py::none();
    return std::move(result);
  }

 private:
  std::vector<Watched> watched_;
  std::vector<Table> tables_;
  std::vector<std::pair<py::object, Place>> states_;
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
      .def("keep", &Guard::keep, py::arg("owner"), py::arg("address"), py::arg("count"), py::arg("places"),
           py::arg("states"),
           "From now on writes where gradients are into a step's table of `count` segments at `address`, the "
           "memory of `owner`, and watches the states. places: segments by the index of the parameter; "
           "states: tensors that have to stay where they are.")
      .def("grads", &Guard::grads, py::arg("params"),
           "The gradients of the parameters, None where there is none; None if anything is not as it was, or "
           "gradients of a table share memory with each other or with what is stepped.");
}
