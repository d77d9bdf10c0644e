"""Frozen batch normalisation folded into the convolutions before it, exactly, at every forward pass.

In evaluation mode batch normalisation is an affine map of each channel, `y = scale * x + shift` with
`scale = gamma / sqrt(variance + eps)` and `shift = beta - mean * scale`. After a convolution `x = W * a + b` that is
the convolution `(scale W) * a + (scale b + shift)`. Folding so at every pass, in place of once for all, leaves all
parameters trainable: autograd's chain rule through the two small products gives `W`, `b`, `gamma` and `beta` the
gradients they have without folding. What is saved is the normalisation's own passes over the activations: a read and
a write forward, and two reads and a write backward, for every convolution of the network.

The idea of folding is from Jacob et al. (arXiv 1712.05877), section 3.2, who need it to quantise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Pairs = Iterable[tuple[str, str]]
"""Names of convolutions, each with that of the normalisation after it."""

_PARTNER = "_folded_batch_norm"
_FIXED = "_folded_weights"


def fold_batch_norm(model: nn.Module, pairs: Pairs | None = None) -> list[tuple[str, str]]:
    """Folds every batch normalisation that follows a convolution, in place.

    Modules, parameters, buffers and their names stay as they are: only what two modules compute moves from one to
    the other. A pair is folded if nothing else uses the convolution's output, both run once per pass, and the
    normalisation is in evaluation mode with running statistics. Training mode is refused while folded.

    Args:
        model: traceable by `torch.fx`; a model that is not stays as it is.
        pairs: what `find_pairs` says of the model, where that is known; saves tracing it.

    Returns:
        The names of convolution and normalisation of each pair that was folded.
    """
    modules = dict(model.named_modules())
    known = find_pairs(model) if pairs is None else pairs
    found = [(conv, norm) for conv, norm in known if _can_fold(modules[conv], modules[norm])]
    for conv, norm in found:
        # In a tuple, so that the normalisation does not become a submodule of the convolution.
        setattr(modules[conv], _PARTNER, (modules[norm],))
        modules[conv].forward = MethodType(_folded_forward, modules[conv])
        modules[norm].forward = MethodType(_already_normalised, modules[norm])
    return found


def unfold_batch_norm(model: nn.Module) -> None:
    """Undoes `fold_batch_norm`."""
    for module in model.modules():
        if hasattr(module, _PARTNER):
            _unfold(module)


def _unfold(conv: nn.Module) -> None:
    (norm,) = getattr(conv, _PARTNER)
    for folded in (conv, norm):
        del folded.forward
    delattr(conv, _PARTNER)


def worth_folding(model: nn.Module, pairs: Pairs, images: Tensor, batch: int) -> list[tuple[str, str]]:
    """The pairs that are folded in less traffic than their normalisation takes, in a step of training.

    Of a normalisation's passes over the A elements of a batch's activations, folding leaves out about four: two of the
    three backward, as the bias needs one, and both forward where the convolution adds its bias itself. It adds about
    eight over the W elements of the convolution's weight: two forward, six for the gradients of weight and scale. So A
    has to be above 2 W: on small images or in small batches the last layers of a network are not worth it.

    Args:
        model: as in `fold_batch_norm`.
        pairs: what `find_pairs` says of it.
        images: `(1, 3, H, W)`, to see how large the activations are.
        batch: images in a step.
    """
    modules = dict(model.named_modules())
    elements: dict[str, int] = {}

    def note(name: str, output: Tensor) -> None:
        elements[name] = output.numel()

    hooks = [
        modules[conv].register_forward_hook(lambda _, __, output, conv=conv: note(conv, output))
        for conv, _ in pairs
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if batch * elements[conv] > 2 * modules[conv].weight.numel()]


@contextmanager
def folded_once(model: nn.Module, pairs: Pairs | None = None) -> Iterator[None]:
    """A block in which normalisations are folded, and once for all its passes: weights must not change within.

    Numbers are those of `fold_batch_norm`, to the bit. Inside, no gradients reach the folded weights. Afterwards what
    was folded before is folded, and nothing else.

    Args:
        model: as in `fold_batch_norm`.
        pairs: as in `fold_batch_norm`.
    """
    modules = dict(model.named_modules())
    newly = fold_batch_norm(model, pairs)
    # Those that a block around this one has folded already, stay so.
    fixed = [m for m in modules.values() if hasattr(m, _PARTNER) and not hasattr(m, _FIXED)]
    try:
        for conv in fixed:
            with torch.no_grad():
                setattr(conv, _FIXED, _folded_weights(conv))
        yield
    finally:
        for conv in fixed:
            conv.__dict__.pop(_FIXED, None)
        for conv, _ in newly:
            _unfold(modules[conv])


def _folded_forward(conv: nn.Conv2d, images: Tensor) -> Tensor:
    weight, bias = getattr(conv, _FIXED, None) or _folded_weights(conv)
    return conv._conv_forward(images, weight, bias)


def _folded_weights(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its normalisation."""
    (norm,) = getattr(conv, _PARTNER)
    if norm.training:
        raise RuntimeError(
            "a folded batch normalisation was set to training mode; unfold_batch_norm() goes first"
        )
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = norm.weight * scale
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    return conv.weight * scale.view(-1, 1, 1, 1), shift


def _already_normalised(norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    return images


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    return not norm.training and norm.running_mean is not None and not hasattr(conv, _PARTNER)


def _computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of a kind, and no subclass that does more: normalises and activates, say."""
    return isinstance(module, kind) and type(module).forward is kind.forward


class _Tracer(fx.Tracer):
    """Looks into no convolution and no normalisation, whoever defined it."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(module, name)


def find_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Convolutions, each with the normalisation that alone gets its output, both called once in a pass.

    Args:
        model: traceable by `torch.fx`; of a model that is not there are none.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a forward does with a stand-in for its input, the model is then left alone
        return []
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times: dict[str, int] = {}
    for node in calls:
        times[node.target] = times.get(node.target, 0) + 1
    return [
        (before.target, node.target)
        for node in calls
        if _computes_as(modules[node.target], nn.BatchNorm2d)
        and len(node.args) == 1
        and isinstance(before := node.args[0], fx.Node)
        and before.op == "call_module"
        and _computes_as(modules[before.target], nn.Conv2d)
        and len(before.users) == 1
        and times[before.target] == times[node.target] == 1
    ]
