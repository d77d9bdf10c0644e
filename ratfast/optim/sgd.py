"""Stochastic gradient descent: torch.optim's arguments and state dicts, `ratfast.ops.sgd_step_`'s step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ratfast import ops
from ratfast.optim import options
from ratfast.optim.base import Alongside, FusedOptimizer, Params
from ratfast.optim.plan import Part


class FusedSGD(FusedOptimizer):
    """SGD with momentum whose step is one pass over the weights, with torch.optim.SGD's arguments.

    `b = momentum b + (1 - dampening) g`, at first `b = g`; `p -= lr b`, or `p -= lr (g + momentum b)` if `nesterov`
    (Sutskever et al., ICML 2013), with `g + weight_decay p` in place of the gradient g. State dicts are exchanged with
    torch.optim both ways. Everything that goes along in the same pass is as in `FusedAdam`. A step can be captured
    into a CUDA graph, with its learning rate unless that is a tensor on the device.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate; a tensor of one element is read at each step, on its device if that is the parameters'.
        momentum: factor of the buffer b; without momentum there is none.
        dampening: what the gradient's factor in the buffer is short of 1.
        weight_decay: L2 penalty.
        nesterov: Nesterov's momentum; needs a momentum and no dampening.
        maximize: ascend instead of descend.
        foreach: None or False; there is one implementation.
        differentiable: False.
        fused: None or True.
        max_grad_norm: clip to this norm; None does not.
        ema_decay: decay of a moving average of the weights; None keeps none.
        swa: keep the mean of the weights after every step.
        master_weights: step float32 masters of bfloat16 and float16 parameters.
        zero_grads: leave the gradients zero.

    Raises:
        ValueError: an argument is out of range, or asks for an implementation that is not this one.
    """

    _required = ("lr", "momentum", "weight_decay")
    _counts_steps = False

    def _is_sound(self, group: Mapping[str, Any]) -> bool:
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        plain = type(lr) is float and type(decay) is float and not group["nesterov"]
        return plain and lr >= 0.0 and momentum >= 0.0 and decay >= 0.0 and group["dampening"] == 0.0

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        swa: bool = False,
        master_weights: bool = False,
        zero_grads: bool = False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        alongside = Alongside(max_grad_norm, ema_decay, swa, master_weights, zero_grads)
        super().__init__(params, defaults, alongside)

    _check_options = staticmethod(options.check_sgd)

    def _moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _update(self, group: Mapping[str, Any], part: Part, extras: ops.StepExtras) -> None:
        ops.sgd_step_(
            part.targets,
            part.grads,
            part.moments.get("momentum_buffer", []),
            part.steps,
            lr=group["lr"],
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            extras=extras,
            table=part.table,
        )

    def state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's form, as `FusedAdam.state_dict`."""
        packed = super().state_dict()
        counts = self._plans.counts
        for group, saved in zip(self.param_groups, packed["param_groups"], strict=True):
            # Dampening begins with the second step. To torch.optim a step is the first where there is no buffer, but
            # ours is there, of zeros, after a first step that was skipped.
            if group["dampening"] != 0:
                for param, key in zip(group["params"], saved["params"], strict=True):
                    if param in counts and counts[param] == 0 and key in packed["state"]:
                        packed["state"][key].pop("momentum_buffer", None)
        return packed
