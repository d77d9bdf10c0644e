#include "sha256.h"

#include <pybind11/stl.h>

#include <mutex>
#include <vector>

#include "../core/sha256.h"
#include "buffers.h"

namespace py = pybind11;

namespace ratfast {
namespace {

struct Pieces {
  std::vector<py::buffer_info> held;
  std::vector<Bytes> bytes;

  explicit Pieces(const std::vector<py::buffer>& buffers) {
    for (const auto& buffer : buffers) {
      held.push_back(bytes_in_a_row(buffer));
      bytes.emplace_back(static_cast<const std::uint8_t*>(held.back().ptr),
                         static_cast<std::size_t>(held.back().size));
    }
  }
};

// Python's threads may share one; they take turns.
class PySha256Streams {
 public:
  explicit PySha256Streams(std::size_t count) : streams_(count) {}

  void update(const std::vector<py::buffer>& buffers, int threads) {
    if (buffers.size() != streams_.count()) throw py::value_error("one buffer per stream is needed");
    const Pieces pieces(buffers);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    streams_.update(pieces.bytes, threads);
  }

  std::vector<py::bytes> digests() {
    std::vector<Sha256Digest> found;
    {
      const py::gil_scoped_release release;
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < streams_.count(); ++i) found.push_back(streams_.digest(i));
    }
    std::vector<py::bytes> digests;
    for (const auto& digest : found)
      digests.emplace_back(reinterpret_cast<const char*>(digest.data()), digest.size());
    return digests;
  }

 private:
  std::mutex mutex_;
  Sha256Streams streams_;
};

}  // namespace

void define_sha256(py::module_& module) {
  if (!has_sha256()) return;
  py::class_<PySha256Streams>(module, "Sha256Streams",
                              "SHA-256 of several messages at once, which come piece by piece.\n\n"
                              "count: how many there are. Only there if this machine has the instructions.")
      .def(py::init<std::size_t>(), py::arg("count"))
      .def("update", &PySha256Streams::update, py::arg("buffers"), py::arg("threads"),
           "Appends one buffer of bytes, of any length, to each message.\n\n"
           "buffers: one per message; threads: how many to use. Raises ValueError for another number of "
           "buffers, or for buffers that are not contiguous bytes.")
      .def("digests", &PySha256Streams::digests,
           "The 32 bytes of each message's digest so far; more may follow.");
}

}  // namespace ratfast
