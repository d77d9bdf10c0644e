"""Adam and AdamW: torch.optim's arguments and state dicts, `ratfast.ops.adam_step_`'s step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ratfast import ops
from ratfast.optim import options
from ratfast.optim.base import Alongside, FusedOptimizer, Params
from ratfast.optim.plan import Part


class FusedAdam(FusedOptimizer):
    """Adam (arXiv 1412.6980) whose step is one pass over the weights, with torch.optim.Adam's arguments.

    `m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`, with
    `g + weight_decay p` in place of the gradient g. State dicts are exchanged with torch.optim both ways. On a
    `ratfast.Arena` the pass goes over one row, elsewhere over the list of parameters; both give the same result.

    What goes along in the same pass, in the order in which a step does it:

    - `torch.amp.GradScaler` hands over its scale, and the step unscales and skips. `ratfast.optim.GradScaler` saves
      its pass over the gradients too. The gradients themselves are left as they are, scaled and not clipped.
    - `max_grad_norm` clips the gradients of all groups together, `min(1, max_grad_norm / (norm + 1e-6))` as
      `torch.nn.utils.clip_grad_norm_` has it, after one pass that takes the norm. If that is not finite, the step is
      skipped. The host waits for neither.
    - `master_weights`, for a model in bfloat16 or float16: what is stepped are float32 copies, which begin as the
      parameters and are kept in the state as "master_param"; the parameters are set to them, rounded. States are
      float32. Parameters that are changed from outside, as by `load_state_dict`, are taken over.
    - `ema_decay` d keeps `a = d a + (1 - d) p` with the new parameters p, beginning as the parameters before the first
      step, in float32 or wider: what `ratfast.ModelEma` does when it is updated after each step. `swa` keeps the mean
      of the parameters after every step instead (arXiv 1803.05407, with a cycle of one step, as the moving average of
      arXiv 2110.10832); `restart_average` begins it anew. A skipped step is not averaged. See `averaged_state_dict`
      and `averaged_parameters`.
    - `zero_grads` leaves the gradients zero, not None; `zero_grad` finds that out and does nothing.

    Gradients in an arena are zeroed by `zero_grad`, whatever `set_to_none` says, so that they stay there: a
    parameter that a loss does not reach is then stepped with a zero gradient, not skipped. Parameters that are stepped
    as one row share the tensor that counts their steps.

    States have the parameters' element type, as in torch.optim; arithmetic is float32 (float64 for float64).

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate; a tensor of one element is read at each step, on its device if that is the parameters'.
        betas: decays of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, or the rate of decay if `decoupled_weight_decay`.
        amsgrad: divide by the largest second moment so far (arXiv 1904.09237).
        foreach: None or False; there is one implementation.
        maximize: ascend instead of descend.
        capturable: allow a step to be captured into a CUDA graph; steps are counted on the device either way. A
            learning rate that is to change between replays has to be a tensor on the device.
        differentiable: False.
        fused: None or True.
        decoupled_weight_decay: AdamW's weight decay.
        max_grad_norm: clip to this norm; None does not.
        ema_decay: decay of a moving average of the weights; None keeps none.
        swa: keep the mean of the weights after every step.
        master_weights: step float32 masters of bfloat16 and float16 parameters.
        zero_grads: leave the gradients zero.

    Raises:
        ValueError: an argument is out of range, or asks for an implementation that is not this one.
    """

    _required = ("lr", "eps", "weight_decay", "betas")

    def _is_sound(self, group: Mapping[str, Any]) -> bool:
        lr, eps, decay, betas = group["lr"], group["eps"], group["weight_decay"], group["betas"]
        return (
            type(lr) is type(betas[0]) is type(betas[1]) is float
            and lr >= 0.0
            and eps >= 0.0
            and decay >= 0.0
            and 0.0 <= betas[0] < 1.0
            and 0.0 <= betas[1] < 1.0
        )

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        swa: bool = False,
        master_weights: bool = False,
        zero_grads: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        alongside = Alongside(max_grad_norm, ema_decay, swa, master_weights, zero_grads)
        super().__init__(params, defaults, alongside)

    _check_options = staticmethod(options.check_adam)

    def _moments(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _update(self, group: Mapping[str, Any], part: Part, extras: ops.StepExtras) -> None:
        beta1, beta2 = group["betas"]
        ops.adam_step_(
            part.targets,
            part.grads,
            part.moments["exp_avg"],
            part.moments["exp_avg_sq"],
            part.moments.get("max_exp_avg_sq", []),
            part.steps,
            lr=group["lr"],
            betas=(float(beta1), float(beta2)),
            weight_decay=float(group["weight_decay"]),
            eps=float(group["eps"]),
            decoupled=group["decoupled_weight_decay"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            extras=extras,
            table=part.table,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", self.defaults["decoupled_weight_decay"])


class FusedAdamW(FusedAdam):
    """AdamW (arXiv 1711.05101): `FusedAdam` with decoupled weight decay, torch.optim.AdamW's arguments.

    `p -= lr weight_decay p` before the step of Adam, whose gradient has no penalty.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate; as in `FusedAdam`.
        betas: decays of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: rate of decay, in units of the learning rate.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend instead of descend.
        foreach: None or False.
        capturable: allow a step to be captured into a CUDA graph.
        differentiable: False.
        fused: None or True.
        max_grad_norm: clip to this norm; what follows too is as in `FusedAdam`.
        ema_decay: decay of a moving average of the weights.
        swa: keep the mean of the weights after every step.
        master_weights: step float32 masters of bfloat16 and float16 parameters.
        zero_grads: leave the gradients zero.

    Raises:
        ValueError: an argument is out of range, or asks for an implementation that is not this one.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = None,
        swa: bool = False,
        master_weights: bool = False,
        zero_grads: bool = False,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            ema_decay=ema_decay,
            swa=swa,
            master_weights=master_weights,
            zero_grads=zero_grads,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
