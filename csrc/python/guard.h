// Whether tensors are still where they were, asked of hundreds of them at every step of an optimizer.
#pragma once

#include <pybind11/pybind11.h>

namespace ratfast {

// Defines the class Guard.
void define_guard(pybind11::module_& module);

}  // namespace ratfast
