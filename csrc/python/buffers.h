// Memory that Python objects lend.
#pragma once

#include <pybind11/pybind11.h>

namespace ratfast {

// The memory of an object that is bytes of one dimension in a row, lent for as long as this lives.
inline pybind11::buffer_info bytes_in_a_row(const pybind11::buffer& object, bool writable = false) {
  auto info = object.request(writable);
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1))
    throw pybind11::value_error("buffers must be contiguous bytes of one dimension");
  return info;
}

}  // namespace ratfast
