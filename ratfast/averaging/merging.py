"""`merge`: models combined by any method, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ratfast.averaging.members import Model, model_list, open_member
from ratfast.averaging.methods import find_method, has_base, plan
from ratfast.averaging.pool import Pool
from ratfast.averaging.tensors import floating_dtype
from ratfast.errors import InputError
from ratfast.rows import dtype_name


@torch.no_grad()
def merge(
    models: Iterable[Model],
    method: str,
    *,
    buffers: str = "error",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """Combines models by a method of `ratfast.averaging.methods`, whose docstrings give papers and formulas.

    Args:
        models: modules, state dicts or paths, in any mixture; their tensors must agree in names and shapes.
        method: such as "ties"; a name of `ratfast.averaging.methods.METHODS`.
        buffers: as in `ratfast.average`.
        dtype: the result's type, for tensors of floating types; by default each keeps the first model's.
        device: where to compute; by default where the first model is.
        options: the method's own; `base` as an index of `models` or as a model, which then comes first; for "fisher"
            also `fisher`: N models that hold the Fisher diagonals of the parameters.

    Returns:
        New tensors by name; a list of such dicts where the method makes several outputs.

    Raises:
        InputError: models or options do not fit together, or buffers differ and `buffers` is "error".
    """
    method = method.replace("_", "-")
    find_method(method)
    models = model_list(models)
    base = options.get("base")
    if base is not None and not isinstance(base, int):
        if not has_base(method):
            raise InputError(f"the method {method} takes no base")
        models, options = [base, *models], {**options, "base": 0}
    diagonals = options.pop("fisher", None)
    count = 0
    if method == "fisher":
        diagonals = list(diagonals or ())
        count = len(diagonals)
        if count != len(models):
            raise InputError(f"fisher needs the Fisher diagonal of each of {len(models)} models, got {count}")
        models = [*models, *diagonals]
    elif diagonals is not None:
        raise InputError(f"the method {method} takes no Fisher diagonals")
    pool = Pool.open(models, device, buffers=buffers, diagonals=count)
    combination = plan(pool, method, options)
    results = pool.combine(combination, dtypes=result_dtypes(models[0], pool, dtype))
    return results[0] if len(results) == 1 and not _is_list(options) else results


def result_dtypes(first: Model, pool: Pool, dtype: torch.dtype | str | None) -> dict[str, str]:
    """The element types of a result: those of the first model, or `dtype` for what is of a floating type."""
    wanted = floating_dtype(dtype)
    types = {
        name: wanted if wanted is not None and tensor.is_floating_point() else tensor.dtype
        for name, tensor in open_member(first, 0).tensors.items()
    }
    return {name: dtype_name(types[name]) for name in pool.layout.names}


def _is_list(options: dict[str, Any]) -> bool:
    """Whether several outputs were asked for, be it a list of one."""
    return isinstance(options.get("alpha"), Sequence)
