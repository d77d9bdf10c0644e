"""What a step does in the same pass over the weights: how it is asked for, and how its results are reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ratfast.optim import averaged
from ratfast.optim.plans import Plans
from ratfast.optim.scaling import Scaling
from ratfast.optim.state import StateTable


@dataclass
class Alongside:
    """What a step does in the same pass over the weights.

    Attributes:
        max_grad_norm: clip the gradients of all groups together to this norm, as `torch.nn.utils.clip_grad_norm_`.
        ema_decay: keep an exponential moving average of the weights, of this decay.
        swa: keep the mean of the weights after every step.
        master_weights: step float32 masters of the bfloat16 and float16 parameters.
        zero_grads: leave the gradients zero.
    """

    max_grad_norm: float | None = None
    ema_decay: float | None = None
    swa: bool = False
    master_weights: bool = False
    zero_grads: bool = False

    def check(self) -> None:
        """Raises ValueError if a value is out of range, or two exclude each other."""
        norm, decay = self.max_grad_norm, self.ema_decay
        if norm is not None and not norm > 0.0:
            raise ValueError(f"Invalid max_grad_norm value: {norm}, expected a number above 0, or None")
        if decay is not None and not 0.0 <= decay <= 1.0:
            raise ValueError(f"Invalid ema_decay value: {decay}, expected a number from 0 to 1, or None")
        if decay is not None and self.swa:
            raise ValueError("ema_decay and swa are both given, expected one average")


class GoesAlong:
    """The part of an optimizer's interface that torch.optim does not have."""

    param_groups: list[dict[str, Any]]
    state: StateTable
    _alongside: Alongside
    _scaling: Scaling
    _mean: averaged.Mean
    _plans: Plans
    _holds_averages = False

    @property
    def max_grad_norm(self) -> float | None:
        """The norm that the gradients of all groups together are clipped to; None does not clip."""
        return self._alongside.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | None) -> None:
        self._set("max_grad_norm", value)

    @property
    def ema_decay(self) -> float | None:
        """The decay of the moving average from the next step on; None leaves the average as it is."""
        return self._alongside.ema_decay

    @ema_decay.setter
    def ema_decay(self, value: float | None) -> None:
        self._set("ema_decay", value)

    def _set(self, name: str, value: Any) -> None:
        changed = Alongside(**{**asdict(self._alongside), name: value})
        changed.check()
        self._alongside = changed
        self._plans.forget()

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients, unscaled and before clipping, at the latest step that measured it: a number on their
        device, overwritten by the next. None before, or without `max_grad_norm` and `ratfast.optim.GradScaler`.
        """
        return self._scaling.norm

    def found_inf_per_device(self) -> dict[torch.device, Tensor]:
        """Whether the latest step that looked found gradients that are not finite: not 0 if so, and it was skipped."""
        return self._scaling.found_inf

    def averaged_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of `model`, which this optimizer trains, with the averages in place of its parameters.

        Buffers are the model's own: batch-norm statistics of averaged weights have to be estimated anew, as
        `ratfast.averaging.recompute_batch_norm` or torch's `update_bn` does.

        Raises:
            InputError: there is no average yet.
        """
        return averaged.averaged_state_dict(model, self.state)

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """A context in which the parameters hold their averages, to evaluate, say; afterwards they are as before.

        No step can be made within.

        Raises:
            InputError: there is no average yet.
        """
        params = [param for group in self.param_groups for param in group["params"]]
        with averaged.swapped(params, self.state):
            self._holds_averages = True
            try:
                yield
            finally:
                self._holds_averages = False

    def restart_average(self) -> None:
        """Begins the average anew: of `swa` with the next step, of `ema_decay` with the parameters as they are.

        So the mean can begin late, as a moving average does, or at every evaluation. The latter is what SWAD
        (arXiv 2102.08604) needs: where evaluations are equally far apart, `ratfast.averaging.SWAD` gives the same
        average when it is updated once for each, with `averaged_state_dict` and the validation loss, as when it is
        updated with the model after every step.
        """
        self._mean.restart()
        with torch.no_grad():
            for param, state in self.state.items():
                if "averaged_param" in state:
                    state["averaged_param"].copy_(state.get("master_param", param))
                if "n_averaged" in state:
                    state["n_averaged"].zero_()
