"""An exponential moving average of a model as a model, with the interface of timm's `ModelEmaV3`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ratfast import ops
from ratfast.averaging.members import in_order, strides_of
from ratfast.averaging.trajectory import check_decay, ema_decay
from ratfast.errors import InputError


class ModelEma(nn.Module):
    """A copy of a model that follows it: `ema = decay * ema + (1 - decay) * model`, in one pass over the weights.

    Args:
        model: copied; make it before it is compiled or wrapped for distributed training.
        decay: from 0 to 1; where `update` is told the step, 0 until `update_after_step`.
        min_decay: least decay during warm-up.
        update_after_step: up to this step (and one more) the copy is the model itself.
        use_warmup: smaller decays at first: `1 - (1 + n / warmup_gamma) ** -warmup_power`, with n the steps since
            `update_after_step` + 1 (`ratfast.averaging.trajectory.ema_decay`). Needs `update` to be told the step.
        warmup_gamma: greater for a slower warm-up.
        warmup_power: smaller for a slower warm-up.
        device: where the copy is kept; by default where the model is.
        dtype: of the copy's floating tensors; by default the model's. Updates are computed in float32 or wider, but
            a copy in bfloat16 or float16 cannot hold the small steps of a decay near 1: give it `torch.float32`.
        foreach: taken for compatibility; updates are always fused.
        exclude_buffers: copy floating buffers instead of averaging them. Integers are always copied.

    Attributes:
        module: the copy, in evaluation mode.

    Raises:
        InputError: `decay` or `min_decay` is not from 0 to 1.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.module.eval()
        self.decay = check_decay(decay)
        self.min_decay = check_decay(min_decay)
        self.update_after_step = update_after_step
        self.use_warmup = use_warmup
        self.warmup_gamma = warmup_gamma
        self.warmup_power = warmup_power
        self.device = None if device is None else torch.device(device)
        self.exclude_buffers = exclude_buffers
        self.module.to(device=self.device, dtype=dtype)

    def get_decay(self, step: int | None = None) -> float:
        """The decay of the update at `step`; `decay` itself where the step is not given."""
        if step is None:
            return self.decay
        return ema_decay(
            step - self.update_after_step - 1,
            self.decay,
            warmup=self.use_warmup,
            gamma=self.warmup_gamma,
            power=self.warmup_power,
            minimum=self.min_decay,
        )

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Moves the copy towards the model as it is now.

        Args:
            model: of the same architecture.
            step: of training; None for the full decay.

        Raises:
            InputError: the model's tensors are not those of the copy.
        """
        self._follow(model, self.get_decay(step))

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Makes the copy equal to the model.

        Raises:
            InputError: the model's tensors are not those of the copy.
        """
        for _, target, value, _ in self._pairs(model):
            target.copy_(value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the copy."""
        return self.module(*args, **kwargs)

    def _follow(self, model: nn.Module, decay: float) -> None:
        # Lists of one device each: a model may be spread over several.
        lists: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
        for _, target, value, is_buffer in self._pairs(model):
            if not target.is_floating_point() or (is_buffer and self.exclude_buffers):
                target.copy_(value)
            else:
                targets, values = lists.setdefault(target.device, ([], []))
                targets.append(target)
                values.append(in_order(value, strides_of(target), target.device))
        for targets, values in lists.values():
            if decay == 0.0:  # no trace of what was not finite
                ops.mix_([targets], [values], [[1.0]])
            else:
                ops.mix_([targets], [targets, values], [[decay, 1.0 - decay]])

    def _pairs(self, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
        """Name, tensor of the copy, tensor of the model, whether it is a buffer; shared tensors once."""
        # With keep_vars, because detaching hundreds of tensors takes as long as averaging them.
        own, other = self.module.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
        if own.keys() != other.keys():
            name = min(own.keys() ^ other.keys())
            raise InputError(
                f"{name!r} is in one of the model and its moving average only, expected the same tensors"
            )
        buffers = {name for name, _ in self.module.named_buffers(remove_duplicate=False)}
        seen = set()
        for name, target in own.items():
            value = other[name]
            if target.shape != value.shape:
                raise InputError(
                    f"{name!r} has shape {list(value.shape)} in the model, expected {list(target.shape)}"
                )
            place = (target.data_ptr(), target.shape, target.stride(), target.dtype, target.device)
            if target.numel() and place in seen:
                continue
            seen.add(place)
            yield name, target, value, name in buffers
