"""The plans of all groups of an optimizer: kept while they hold, and made anew after everything has been checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ratfast.errors import InputError
from ratfast.optim.checks import check_gradients, check_state
from ratfast.optim.plan import Kept, Plan
from ratfast.optim.state import StateTable
from ratfast.optim.state_dicts import name_of

Group = Mapping[str, Any]


class Plans:
    """A plan for each group.

    Attributes:
        counts: the steps of parameters whose states do not count them.
    """

    def __init__(self) -> None:
        self.counts: dict[Tensor, Tensor] = {}
        self._plans: list[Plan] = []
        self._changes = -1

    def forget(self) -> None:
        """Makes all plans anew at the next step."""
        self._changes = -1

    def accept_changes(self, state: StateTable) -> None:
        """Goes on with the plans as they are after states were changed that they do not look at."""
        self._changes = state.changes.count

    def current(
        self, groups: Sequence[Group], state: StateTable, kept_of: Callable[[Group], Kept], capturing: bool
    ) -> tuple[list[Plan], bool]:
        """The plans, with the gradients brought, and whether one was made anew.

        Args:
            groups: the optimizer's.
            state: the optimizer's, created where missing.
            kept_of: what the optimizer keeps in a group; the same object for the same.
            capturing: whether a CUDA graph is being captured, in which no plan can be made.

        Raises:
            InputError: a parameter, gradient or state cannot be stepped, or a plan is needed for a capture.
        """
        holding = self._changes == state.changes.count
        plans: list[Plan | None] = []
        grads: list[list[Tensor | None]] = []
        for number, group in enumerate(groups):
            plan = self._plans[number] if holding and number < len(self._plans) else None
            if plan is not None and plan.kept is not kept_of(group):
                plan = None
            found = None if plan is None else plan.grads(group["params"])
            plans.append(None if found is None else plan)
            grads.append([param.grad for param in group["params"]] if found is None else found)
        renewed = None in plans
        if renewed:
            if capturing:
                raise InputError(
                    "the optimizer has to make a step with the same parameters and gradients before one can be "
                    "captured into a CUDA graph"
                )
            self._renew(plans, grads, groups, state, kept_of)
        for plan, brought in zip(self._plans, grads, strict=True):
            for part in plan.parts:
                part.bring(brought)
        return self._plans, renewed

    def _renew(
        self,
        plans: list[Plan | None],
        grads: list[list[Tensor | None]],
        groups: Sequence[Group],
        state: StateTable,
        kept_of: Callable[[Group], Kept],
    ) -> None:
        """Makes the plans that are None."""
        missing = [number for number, plan in enumerate(plans) if plan is None]
        for number in missing:
            _check(groups[number], number, grads[number], state, kept_of(groups[number]))
        for number in missing:
            group = groups[number]
            plans[number] = Plan(group["params"], grads[number], state, self.counts, kept_of(group))
        self._plans = [plan for plan in plans if plan is not None]
        self.accept_changes(state)


def _check(group: Group, number: int, grads: Sequence[Tensor | None], state: StateTable, kept: Kept) -> None:
    check_gradients(group["params"], grads, lambda index: name_of(group, number, index))
    for index, param in enumerate(group["params"]):
        if param in state:
            check_state(param, state[param], kept.names(), name_of(group, number, index))
