// SHA-256 of many buffers, in the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace ratfast {

// Defines nothing on machines without the instructions.
void define_sha256(pybind11::module_& module);

}  // namespace ratfast
