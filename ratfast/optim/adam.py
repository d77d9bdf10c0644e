"""Adam and AdamW: torch.optim's arguments and state dicts, `ratfast.ops.adam_`'s step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor

from ratfast import ops
from ratfast.errors import InputError
from ratfast.gradients import gradient_row
from ratfast.optim.plan import Plan

_Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# What torch.optim's implementation switches may be here, and what is stored for torch.optim to load.
_SWITCHES: dict[str, tuple[Any, ...]] = {
    "foreach": (None, False),
    "fused": (None, True),
    "capturable": (False,),
    "differentiable": (False,),
}


class FusedAdam(torch.optim.Optimizer):
    """Adam (arXiv 1412.6980) whose step is one pass over the parameters.

    Takes torch.optim.Adam's arguments, and state dicts are exchanged with it both ways. On a `ratfast.Arena`
    the pass is one row operation; elsewhere it goes over the list of parameters. Both give the same result.

    Gradients in an arena are zeroed by `zero_grad`, whatever `set_to_none` says, so that they stay there: a
    parameter that a loss does not reach is then stepped with a zero gradient, not skipped.

    States have the parameters' element type, as in torch.optim; arithmetic is float32 (float64 for float64).

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate; a tensor of one element is read at each step (which waits for its device).
        betas: decays of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: L2 penalty, or the rate of decay if `decoupled_weight_decay`.
        amsgrad: divide by the largest second moment so far (Reddi et al. 2018).
        foreach: None or False; there is one implementation.
        maximize: ascend instead of descend.
        capturable: False; steps are counted on the CPU.
        differentiable: False.
        fused: None or True.
        decoupled_weight_decay: AdamW's weight decay.

    Raises:
        ValueError: an argument is out of range, or asks for an implementation that is not this one.
    """

    def __init__(
        self,
        params: _Params,
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
    ):
        self._plans: dict[int, Plan] = {}
        self._known_states: list[dict[str, Any]] = []
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
        _check_options(defaults, type(self).__name__)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in torch.optim.

        Raises:
            ValueError: its options are out of range, or a parameter is already in a group.
        """
        super().add_param_group(param_group)
        try:
            _check_options(self.param_groups[-1], type(self).__name__)
        except ValueError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients anew; its result is returned.

        Returns:
            What `closure` returned, else None.

        Raises:
            InputError: a gradient is sparse, or a parameter of a type that cannot be stepped; names it. Also
                while a CUDA graph is captured.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise InputError(
                f"{type(self).__name__} cannot be captured into a CUDA graph: it counts steps on the CPU, "
                "and a replay would repeat the captured step's number"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._forget_changed_states()
        for number, group in enumerate(self.param_groups):
            params = group["params"]
            grads = [param.grad for param in params]
            keys = (
                ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")
            )
            plan = self._plans.get(number)
            if plan is None or not plan.fits(params, grads, keys):
                plan = Plan(params, grads, self.state, keys, partial(_name, group, number))
                self._plans[number] = plan
                self._known_states = list(self.state.values())
            self._step_group(group, plan, grads)
        return loss

    def _step_group(self, group: dict[str, Any], plan: Plan, grads: list[Tensor | None]) -> None:
        """Hands a group's tensors to the operator."""

        def update(
            params: list[Tensor], grads: list[Tensor], states: dict[str, list[Tensor]], steps: Tensor
        ) -> None:
            ops.adam_(
                params,
                grads,
                states["exp_avg"],
                states["exp_avg_sq"],
                states.get("max_exp_avg_sq", []),
                steps,
                lr=float(group["lr"]),
                betas=(float(group["betas"][0]), float(group["betas"][1])),
                weight_decay=float(group["weight_decay"]),
                eps=float(group["eps"]),
                decoupled=group["decoupled_weight_decay"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
            )

        plan.step(grads, update)

    def _forget_changed_states(self) -> None:
        """Drops the plans if entries of `self.state` were added, removed or replaced from outside."""
        states = self.state.values()
        if len(states) != len(self._known_states) or not all(map(is_, states, self._known_states)):
            self._plans.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients: those in an arena by a fill of their row, others as torch.optim does.

        Args:
            set_to_none: whether gradients outside an arena become None instead of zeros.
        """
        kept: dict[int, list[Tensor]] = {}
        for group in self.param_groups:
            for param in group["params"]:
                row = gradient_row(param.grad)
                if row is not None:
                    kept.setdefault(id(row), []).append(param.grad)
                elif set_to_none:
                    param.grad = None
        with torch.no_grad():
            for grads in kept.values():
                row = gradient_row(grads[0])
                if len(grads) == row.count:
                    row.row.zero_()
                else:
                    torch._foreach_zero_(grads)
        if not set_to_none:
            super().zero_grad(set_to_none=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = {}
        self._known_states = []
        for group in self.param_groups:
            group.setdefault("amsgrad", False)
            group.setdefault("maximize", False)
            group.setdefault("decoupled_weight_decay", False)
            for switch, values in _SWITCHES.items():
                # A state dict of torch.optim says how torch computed it, which is of no concern here.
                if group.get(switch) not in values:
                    group[switch] = values[0]
        for entry in self.state.values():
            if "step" in entry:
                # On the CPU as numbers, in torch's older state dicts, or on the GPU with fused or capturable.
                entry["step"] = torch.as_tensor(entry["step"], dtype=torch.float32).cpu()


class FusedAdamW(FusedAdam):
    """AdamW (arXiv 1711.05101): `FusedAdam` with decoupled weight decay, torch.optim.AdamW's arguments.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate; a tensor of one element is read at each step (which waits for its device).
        betas: decays of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: rate of decay, in units of the learning rate.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend instead of descend.
        foreach: None or False.
        capturable: False.
        differentiable: False.
        fused: None or True.

    Raises:
        ValueError: an argument is out of range, or asks for an implementation that is not this one.
    """

    def __init__(
        self,
        params: _Params,
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
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


def _check_options(options: dict[str, Any], optimizer: str) -> None:
    for name, values in _SWITCHES.items():
        if options[name] not in values:
            raise ValueError(
                f"{optimizer} does not support {name}={options[name]!r}, expected "
                f"{' or '.join(repr(value) for value in values)}"
            )
    beta0, beta1 = options["betas"]
    for name, value in (("lr", options["lr"]), ("beta0", beta0), ("beta1", beta1)):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"{name} is a tensor of {value.numel()} elements, expected one")
    # The texts are torch.optim's.
    if not options["lr"] >= 0.0:
        raise ValueError(f"Invalid learning rate: {options['lr']}")
    if not options["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {options['eps']}")
    for index, beta in enumerate(options["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if not options["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")


def _name(group: dict[str, Any], number: int, index: int) -> str:
    names = group.get("param_names")
    return names[index] if names else f"parameter {index} of group {number}"
