"""A pool of models of one architecture: a matrix with a model in each row, and the algebra over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ratfast import ops
from ratfast.averaging.buffers import average_integer, is_mixed
from ratfast.averaging.combination import Combination, Mix, Step, grouped
from ratfast.averaging.members import Member, Model, tied
from ratfast.averaging.model_rows import ModelRow, model_row, new_model_row
from ratfast.averaging.opening import open_models
from ratfast.averaging.rules import check_weights, not_finite
from ratfast.averaging.sections import Section, sections, tensor_sections
from ratfast.checkpoints.tensors import dense_strides, dtype_name
from ratfast.dtypes import BY_NAME
from ratfast.layout import Layout, TensorSpec


class Pool:
    """N models as the rows of a matrix. Make one with `Pool.open`.

    Attributes:
        layout: where each tensor stands in a row; tensors that share memory in all models once.
        aliases: further names of such tensors: name -> its name in the layout.
        names: what each model is called: its file, or "model 1" and so on.
        device: where the rows are.
        parameters: names of the tensors that methods work on: of floating types and no buffers.
        policy: for buffers: "keep", "average" or "error".
    """

    def __init__(
        self,
        layout: Layout,
        rows: Sequence[ModelRow],
        names: Sequence[str],
        buffers: frozenset[str],
        policy: str,
        device: torch.device,
        diagonals: int = 0,
        aliases: Mapping[str, str] | None = None,
    ):
        """For `open`, which checks that the rows belong together."""
        self.layout = layout
        self.names = tuple(names)
        self.device = device
        self._rows = list(rows)
        self._buffers = buffers
        self.policy = policy
        self.aliases = dict(aliases or {})
        self._models = len(rows) - diagonals
        self.parameters = tuple(
            e.name for e in layout if BY_NAME[e.dtype].is_floating and e.name not in buffers
        )
        summed = [entry for entry in layout if is_mixed(entry.dtype, entry.name in buffers, policy)]
        in_sums = {entry.name for entry in summed}
        kept = [entry for entry in layout if entry.name not in in_sums]
        self._summed = [entry.name for entry in summed]
        divide = sections if all(row.whole is not None for row in rows) else tensor_sections
        self._sections = divide(summed)
        self._kept = [entry.name for entry in kept]
        self._copied: list[Section] = [] if policy == "average" else divide(kept)

    @classmethod
    def open(
        cls,
        models: Iterable[Model],
        device: torch.device | str | None = None,
        *,
        buffers: str = "error",
        diagonals: int = 0,
    ) -> Pool:
        """Opens models for averaging.

        Files stay where they are and are mapped, if their tensors agree in types and strides with the pool's and
        the pool is on the CPU; everything else is copied into a row of its own once, here, so that later
        changes of a module do not reach the pool. Where models differ in an element type, the wider one is
        taken.

        Args:
            models: modules, state dicts, or paths of checkpoints; at least one.
            device: where the rows are kept; by default where the first model is.
            buffers: as in `ratfast.average`, for everything that the pool computes.
            diagonals: how many of the last models are none, but hold numbers for the parameters of those before
                (Fisher information); they need no other tensors.

        Raises:
            InputError: a model cannot be opened, models do not fit together, or buffers differ and `buffers`
                is "error".
        """
        opened = open_models(models, buffers, diagonals)
        members, of_buffers = opened.members, opened.buffers
        first = members[0].tensors
        place = first[next(iter(first))].device if device is None and first else torch.device(device or "cpu")
        aliases = {
            name: names[0]
            for names in tied(list(first), members[: len(members) - diagonals])
            for name in names[1:]
        }
        layout = _layout(members, of_buffers, [name for name in first if name not in aliases])
        rows = [model_row(member, layout, place) for member in members]
        labels = [member.label for member in members]
        device = next((tensor.device for tensor in rows[0].tensors.values()), place)  # with its index
        return cls(layout, rows, labels, of_buffers, buffers, device, diagonals, aliases)

    def __len__(self) -> int:
        return len(self._rows)

    def average(self, w: Iterable[float] | None = None, row: ModelRow | None = None) -> dict[str, Tensor]:
        """The sum of the rows weighted by `w`, one finite number for each model; by default 1 / N each.

        Args:
            w: the weights.
            row: from `new_row`, to be written to; by default a new one.

        Returns:
            Tensors by name, on the pool's device, views of one row.

        Raises:
            InputError: the weights are not N finite numbers.
        """
        return self._mix([check_weights(w, len(self))], None if row is None else [row])[0]

    def mix(self, W: Tensor | Iterable[Iterable[float]]) -> list[dict[str, Tensor]]:
        """K weighted sums, with every row read once for all of them.

        Args:
            W: (K, N) weights. Rows of the pool that have weight 0 throughout are not read.

        Returns:
            K dicts of new tensors, each the views of one row.

        Raises:
            InputError: a row of `W` is not N finite numbers.
        """
        return self._mix([check_weights(w, len(self)) for w in W])

    def gram(self) -> Tensor:
        """The inner products of all pairs of models over their parameters, without buffers.

        Returns:
            (N, N) float64 on the CPU, accumulated in float64.
        """
        return torch.from_numpy(self.grams()).sum(0)

    def grams(self) -> np.ndarray:
        """(T, N, N) float64: the inner products of all pairs of models, for each of `parameters`."""
        if not self.parameters:
            return np.zeros((0, len(self), len(self)))
        return ops.gram(self._tensors(range(len(self)), self.parameters)).numpy()

    def kth_magnitudes(
        self, model: int, base: int | None, counts: Sequence[int], *, together: bool
    ) -> np.ndarray:
        """The k-th largest magnitudes of differences, as `ratfast.averaging.combination.Rows` says."""
        [sources] = self._tensors([model], self.parameters)
        bases = None if base is None else self._tensors([base], self.parameters)[0]
        numbers = counts[0] if together else list(counts)
        found = ops.kth_magnitudes(sources, bases, numbers, together=together)
        return np.atleast_1d(found.numpy())

    def combine(
        self, combination: Combination, *, dtypes: Mapping[str, str] | None = None
    ) -> list[dict[str, Tensor]]:
        """Carries out what a method of `ratfast.averaging.methods` asks for.

        Args:
            combination: made for this pool.
            dtypes: names of element types for tensors of the result; by default those of the pool.

        Returns:
            For each output of the combination a dict of new tensors, on the pool's device, the views of one row.

        Raises:
            InputError: truth values that differ are to be averaged.
        """
        layout = self._layout_in(dtypes or {})
        results = [new_model_row(layout, self.device).tensors for _ in combination.weights]
        for step, items in grouped(((name,) for name in self._summed), combination):
            names = [name for (name,) in items]
            self._run(step, combination, names, [[result[name] for name in names] for result in results])
        for result, weights in zip(results, combination.weights, strict=True):
            self._fill(result, weights)
        return [self._with_aliases(result) for result in results]

    def check_finite(self, results: Sequence[Mapping[str, Tensor]], combination: Combination) -> None:
        """Checks the outputs of `combine`.

        Raises:
            InputError: one is not finite; names the tensor, and the model that is the reason.
        """
        for name in self._summed:
            finite = torch.stack([result[name].isfinite() for result in results]).all(0)
            if finite.all():
                continue
            for n in combination.models(combination.step(name)):
                if not self._rows[n].tensors[name][~finite].isfinite().all():
                    raise not_finite(name, self.names[n], None)
            raise not_finite(name, None, dtype_name(name, results[0][name]))

    def _with_aliases(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {name: tensors[target] for name, target in self.aliases.items()}

    def new_row(self) -> ModelRow:
        """An uninitialised row on the pool's device."""
        return new_model_row(self.layout, self.device)

    def state(self, row: ModelRow) -> dict[str, Tensor]:
        """The tensors of a row by name, aliases among them; they share its memory."""
        return self._with_aliases(row.tensors)

    def alone(self, index: int) -> ModelRow:
        """Model `index` as the average of itself alone: its own memory, and the buffers that the pool keeps."""
        own = self._rows[index]
        if self.policy == "average":
            return own
        return ModelRow(own.tensors | {name: self._rows[0].tensors[name] for name in self._kept})

    def summands(self, index: int) -> list[Tensor]:
        """What of model `index` takes part in sums: its sections, 1-D, each of one element type."""
        return self.sections_of(self._rows[index])

    def sections_of(self, row: ModelRow) -> list[Tensor]:
        """The sections of `summands`, of any row."""
        return row.sections(self._sections)

    def fill_kept(self, row: ModelRow, weights: Sequence[float]) -> None:
        """Writes into a row what takes no part in sums: buffers that are kept, and integers."""
        if self._copied:
            torch._foreach_copy_(row.sections(self._copied), self._rows[0].sections(self._copied))
        if self.policy == "average" and self._kept:
            self._fill(row.tensors, weights)

    def _mix(
        self, weights: Sequence[Sequence[float]], rows: Sequence[ModelRow] | None = None
    ) -> list[dict[str, Tensor]]:
        counted = [n for n in range(len(self)) if any(w[n] != 0.0 for w in weights)] or [0]
        rows = rows or [self.new_row() for _ in weights]
        ops.mix_(
            [self.sections_of(row) for row in rows],
            [self.summands(n) for n in counted],
            [[w[n] for n in counted] for w in weights],
        )
        for row, w in zip(rows, weights, strict=True):
            self.fill_kept(row, w)
        return [self.state(row) for row in rows]

    def _run(
        self, step: Step, combination: Combination, names: list[str], targets: list[list[Tensor]]
    ) -> None:
        """Computes some tensors of every output, by one call of an operator."""
        if isinstance(step, Mix):
            models = combination.models(step)
            weights = [[row[n] for n in models] for row in step.weights]
            ops.mix_(targets, self._tensors(models, names), weights)
            return
        sources = self._tensors(step.models, names)
        bases = None if step.base is None else self._tensors([step.base], names)[0]
        outputs = targets[0]
        if step.densities is not None:  # random numbers go by the element's place in C order
            sources = [[tensor.contiguous() for tensor in model] for model in sources]
            bases = None if bases is None else [tensor.contiguous() for tensor in bases]
            outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in outputs]
        steps = [combination.steps[name] for name in names]
        ops.combine_(
            outputs,
            sources,
            bases,
            step.kind,
            weights=step.weights,
            thresholds=None if step.thresholds is None else [own.thresholds for own in steps],
            densities=step.densities,
            keys=None if step.densities is None else [own.key for own in steps],
            streams=None if step.densities is None else step.streams,
            seed=step.seed,
            scale=step.scale,
            normalize=step.normalize,
        )
        for target, output in zip(targets[0], outputs, strict=True):
            if target is not output:
                target.copy_(output)

    def _fill(self, result: dict[str, Tensor], weights: Sequence[float]) -> None:
        members = [
            Member(label, {name: row.tensors[name] for name in self._kept}, None)
            for label, row in zip(self.names[: self._models], self._rows, strict=False)
        ]
        for name in self._kept:
            if self.policy == "average":
                value = average_integer(name, members, weights[: self._models])
            else:
                value = members[0].tensors[name]
            result[name].copy_(value)

    def _tensors(self, models: Iterable[int], names: Sequence[str]) -> list[list[Tensor]]:
        return [[self._rows[n].tensors[name] for name in names] for n in models]

    def _layout_in(self, dtypes: Mapping[str, str]) -> Layout:
        """The pool's layout, or one of tensors alike but for their types."""
        if all(dtypes.get(entry.name, entry.dtype) == entry.dtype for entry in self.layout):
            return self.layout
        return Layout.pack(
            TensorSpec(e.name, e.shape, dtypes.get(e.name, e.dtype), e.strides, e.name in self._buffers)
            for e in self.layout
        )


def _layout(members: Sequence[Member], buffers: frozenset[str], names: Sequence[str]) -> Layout:
    """The first file's own layout if rows can be kept in it, else the canonical one in the widest types."""
    first = {name: members[0].tensors[name] for name in names}
    dtypes = {}
    for name, tensor in first.items():
        dtype = tensor.dtype
        for member in members[1:]:
            if dtype.is_floating_point and name in member.tensors and member.tensors[name].dtype != dtype:
                dtype = torch.promote_types(dtype, member.tensors[name].dtype)
        dtypes[name] = str(dtype).removeprefix("torch.")
    own = members[0].layout
    if own is not None and {entry.name: entry.dtype for entry in own} == dtypes:
        return own
    return Layout.pack(
        TensorSpec(name, tuple(tensor.shape), dtypes[name], dense_strides(tensor), name in buffers)
        for name, tensor in first.items()
    )
