"""How an operator is defined, called and taken out of use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ratfast import native

_library = torch.library.Library("ratfast", "DEF")
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_on_cuda: dict[str, Callable[..., object]] = {}


def define(
    schema: str, reference: Callable[..., object], fake: Callable[..., object], *, on_cuda: bool = True
) -> None:
    """Defines an operator of the namespace `ratfast`.

    Args:
        schema: name, arguments and results.
        reference: the implementation on plain torch, for wherever there is no native one.
        fake: what it returns for tensors without data.
        on_cuda: whether the CUDA library implements it too.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=_tags)
    names = [argument.name for argument in torch._C.parse_schema(f"ratfast::{schema}").arguments]

    # Operators with many arguments take them by place, which spares their callers a search for each name.
    def by_name(*arguments: object, **options: object) -> object:
        return reference(**dict(zip(names, arguments, strict=False)), **options)

    _library.impl(name, by_name, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ratfast::{name}", fake, lib=_library)
    if on_cuda:
        _on_cuda[name] = by_name


def check_cuda(tensors: Iterable[Tensor]) -> None:
    """Before an operator runs natively on a CUDA device: where that cannot work, all of them leave it to torch."""
    for device in {tensor.device for tensor in tensors}:
        if device.type == "cuda" and native.covers("cuda") and not native.check_cuda(device.index or 0):
            for name, reference in _on_cuda.items():
                _library.impl(name, reference, "CUDA")


def call(
    operator: Callable[..., None],
    arguments: Sequence[object],
    options: dict[str, object],
    tensors: list[Tensor],
    check: Callable[[], None],
) -> None:
    """Calls an operator after `check`, or without it where native code refuses the same things faster."""
    devices = {tensor.device for tensor in tensors}
    if not torch.compiler.is_compiling():
        check_cuda(tensors[:1])
    trusted = (
        not torch.compiler.is_compiling()
        and len(devices) == 1
        and native.covers(next(iter(devices)).type)
        and {tensor.layout for tensor in tensors} == {torch.strided}
    )
    if not trusted:
        check()
    with torch.no_grad():
        try:
            operator(*arguments, **options)
        except RuntimeError:
            if trusted:
                check()  # finds better words, unless the trouble is another
            raise


def increment_versions(tensors: list[Tensor]) -> None:
    """Tells autograd what was overwritten: operators registered through the stable ABI do not do this themselves."""
    # A compiled graph does its own.
    if torch.compiler.is_compiling():
        return
    try:
        torch.autograd.graph.increment_version(tensors)
    except RuntimeError:  # inference tensors have no version
        torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])
