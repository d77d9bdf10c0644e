"""The native operators on plain torch: the fallback where no native library loads, the oracle of the tests.

Arguments are those of the operators `ratfast::*` (see `ratfast.ops` for their checked wrappers): flat lists of
dense tensors. Nothing here checks them.
"""

from ratfast.reference.averaging import combine_, gram, kth_magnitudes, mix_, uniforms
from ratfast.reference.steps import adam_step_, gradient_norm_, sgd_step_, step_table

__all__ = [
    "adam_step_",
    "combine_",
    "gradient_norm_",
    "gram",
    "kth_magnitudes",
    "mix_",
    "sgd_step_",
    "step_table",
    "uniforms",
]
