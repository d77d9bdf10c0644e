"""Optimizers with torch.optim's interface whose step is one fused pass, over one row on an arena."""

from ratfast.optim.adam import FusedAdam, FusedAdamW
from ratfast.optim.grad_scaler import GradScaler
from ratfast.optim.sgd import FusedSGD

__all__ = ["FusedAdam", "FusedAdamW", "FusedSGD", "GradScaler"]
