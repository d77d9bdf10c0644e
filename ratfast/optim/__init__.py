"""Optimizers with torch.optim's interface whose step is one fused pass, over one row on an arena."""

from ratfast.optim.adam import FusedAdam, FusedAdamW

__all__ = ["FusedAdam", "FusedAdamW"]
