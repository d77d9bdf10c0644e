"""The torch operators `ratfast::*`, and the checked functions that call them: weighted sums and other reductions
over models (`ratfast.ops.averaging`), the norm of gradients (`ratfast.ops.norms`), and optimizer steps
(`ratfast.ops.steps`).

The schemas stand beside the functions. The native libraries register implementations for the CPU and for CUDA; every
other device, and every device where they are not loaded, runs `ratfast.reference`. The operators have no autograd:
call them through the functions here, which check their arguments, run without gradients, and tell autograd
what was overwritten.
"""

from ratfast import native
from ratfast.ops.averaging import COMBINE_KINDS, combine_, gram, kth_magnitudes, mix_
from ratfast.ops.norms import gradient_norm_
from ratfast.ops.numbers import step_workspace
from ratfast.ops.steps import StepExtras, adam_step_, sgd_step_, step_table

native.load_torch_libraries()

__all__ = [
    "COMBINE_KINDS",
    "StepExtras",
    "adam_step_",
    "combine_",
    "gradient_norm_",
    "gram",
    "kth_magnitudes",
    "mix_",
    "sgd_step_",
    "step_table",
    "step_workspace",
]
