"""Updates captured and replayed, against the same updates made one operation at a time."""

import dataclasses
import functools
from unittest import mock

import pytest
import torch

from ratfast import InputError
from ratfast.arena import Arena
from ratfast.data import Batch
from ratfast.models.folding import fold_batch_norm
from ratfast.optim import FusedAdam
from ratfast.train.fit import Schedule, Training
from ratfast.train.loss import RunningLoss
from ratfast.train.step import WARM_UP, EagerStep, GraphedStep, full_loss, head_loss
from ratfast.train.validation import PlainImages, Validator

from .test_fit import FixedLoader, build, validation

SCHEDULE = Schedule(
    steps=10, probe_steps=5, eval_every=4, lr=1e-3, weight_decay=1e-4, precision="float32"
)  # fmt: skip


class Recording:
    """In place of a CUDA graph: keeps what is captured, and does it again when it is replayed."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1

        def replay():
            self.replays += 1
            function()

        return replay


def failing(function):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def updates(batches, capture=None, loss_of=full_loss):
    """The model's row, the sum of losses, and what was said, after an update on each batch."""
    model, arena = build(dropout=0.3)
    model.train()
    optimizer = FusedAdam(model.parameters(), lr=1e-3, zero_grads=True)
    loss, said = RunningLoss(arena.device), []
    step = EagerStep(lambda batch: loss_of(model, batch), optimizer, loss.sum)
    if capture is not None:
        step = GraphedStep(step, said.append, capture)
    torch.manual_seed(5)
    for batch in batches:
        step.prepare(batch)
        step.apply()
    return arena.row_copy(), float(loss.sum), said


def batches_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(n, 3, 32, 32, generator=generator), torch.randint(0, 3, (n,), generator=generator))
        for n in sizes
    ]


@pytest.mark.parametrize("loss_of", [full_loss, head_loss])
def test_replayed_updates_are_those_of_the_other_step(loss_of):
    batches, recording = batches_of(*[4] * 7), Recording()
    row, loss, said = updates(batches, recording, loss_of)
    expected_row, expected_loss, _ = updates(batches, None, loss_of)
    assert torch.equal(row, expected_row) and loss == expected_loss and not said
    assert (recording.captures, recording.replays) == (1, 7 - WARM_UP)


def test_a_batch_of_another_shape_is_not_replayed():
    batches, recording = batches_of(4, 4, 4, 4, 2, 4), Recording()
    row, loss, _ = updates(batches, recording)
    expected_row, expected_loss, _ = updates(batches)
    assert torch.equal(row, expected_row) and loss == expected_loss
    assert recording.replays == 2


def test_a_capture_that_fails_is_told_once_and_changes_nothing():
    batches = batches_of(*[4] * 6)
    row, loss, said = updates(batches, failing)
    expected_row, expected_loss, _ = updates(batches)
    assert torch.equal(row, expected_row) and loss == expected_loss
    reason = "operation not permitted when stream is capturing"
    assert said == [f"updates are made without a CUDA graph, since one could not be captured: {reason}"]


def test_a_batch_may_be_overwritten_once_it_was_brought():
    batches, recording = batches_of(*[4] * 6), Recording()
    model, arena = build()
    optimizer = FusedAdam(model.parameters(), lr=1e-3, zero_grads=True)
    loss = RunningLoss(arena.device)
    step = GraphedStep(
        EagerStep(lambda batch: full_loss(model, batch), optimizer, loss.sum), pytest.fail, recording
    )
    for number, batch in enumerate(batches):
        given = Batch(batch.images.clone(), batch.labels.clone())
        step.prepare(given)
        if number >= WARM_UP:
            given.images.zero_()
        step.apply()
    reference, expected = build()
    optimizer = FusedAdam(reference.parameters(), lr=1e-3, zero_grads=True)
    for batch in batches:
        full_loss(reference, batch).backward()
        optimizer.step()
    assert torch.equal(arena.row, expected.row)


def test_the_loss_is_looked_at_without_the_running_sum_being_lost():
    loss = RunningLoss(torch.device("cpu"))
    loss.sum += 3.0
    loss.count = 2
    assert loss.mean() == 1.5 and loss.seems_finite() and loss.is_finite()
    loss.clear()
    assert float(loss.sum) == loss.count == 0
    loss.sum += float("nan")
    assert not loss.seems_finite() and not loss.is_finite()


def train(device, *, fold=False, dtype=torch.float32, dropout=0.0, **changes):
    torch.manual_seed(0)
    model, _ = build(dropout=dropout)
    model.to(device=device, dtype=dtype)
    if fold:
        assert fold_batch_norm(model.featurizer, model.featurizer.pairs)
    arena = Arena(model)
    sets = {
        split: PlainImages(images.images.to(device), images.labels.to(device))
        for split, images in validation().items()
    }
    validator = Validator(model, sets, "float32")
    if dtype != torch.float32:  # which images are evaluated in
        validator = lambda **_: {"val": 0.0, "val_loss": 0.0}  # noqa: E731
    said = []
    loader = FixedLoader()
    loader._batches = [
        Batch(batch.images.to(device=device, dtype=dtype), batch.labels.to(device))
        for batch in loader._batches
    ]
    schedule = dataclasses.replace(SCHEDULE, **changes)
    training = Training(model, arena, validator, schedule, say=said.append)
    fitted = training.run(loader, lambda images: None, lambda val: None)
    assert not said
    return fitted, model


def parameters_of(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_training_with_folded_normalisation_is_the_training_without():
    options = {"dtype": torch.float64, "probe_steps": 1, "steps": 8}
    plain, folded = (parameters_of(train("cpu", fold=fold, **options)[1]) for fold in (False, True))
    assert not torch.equal(plain, folded)  # other roundings, or nothing was folded
    torch.testing.assert_close(folded, plain, rtol=1e-7, atol=1e-9)


def test_the_first_losses_with_folded_normalisation_are_those_without_to_float32s_rounding():
    # Later Adam enlarges the difference, as it does that between any two ways to compute the same: where a gradient is
    # near zero its first steps take little but the sign.
    options = {"probe_steps": 1, "eval_every": 1, "steps": 3}
    plain, folded = (
        [row["loss"] for row in train("cpu", fold=fold, **options)[0].rows] for fold in (False, True)
    )
    assert plain != folded
    assert folded == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_the_first_losses_of_compiled_updates_are_those_without_to_float32s_rounding():
    options = {"probe_steps": 1, "eval_every": 1, "steps": 3, "fold": True}
    with mock.patch.object(torch, "compile", wraps=torch.compile) as compile_:
        plain, compiled = (
            [row["loss"] for row in train("cpu", compile=use, **options)[0].rows] for use in (False, True)
        )
    assert compile_.call_count == 1
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_what_cannot_be_compiled_is_one_sentence():
    def backend(graph, inputs):
        raise RuntimeError("no compiler")

    compile_ = functools.partial(torch.compile, backend=backend)
    with (
        mock.patch.object(torch, "compile", compile_),
        pytest.raises(InputError, match=r"train\.compile is on"),
    ):
        train("cpu", compile=True, probe_steps=0, steps=1)


@pytest.mark.cuda
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_training_in_cuda_graphs_is_the_training_without(cuda, fold, precision, dropout):
    options = {"fold": fold, "precision": precision, "dropout": dropout}
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        plain, model = train(cuda, **options)
        graphed, other = train(cuda, cuda_graph=True, **options)
    assert graphed.rows == plain.rows
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.cuda
def test_a_loss_that_is_not_finite_reaches_the_host_by_itself(cuda):
    loss = RunningLoss(cuda)
    loss.sum += float("inf")
    assert loss.seems_finite()  # nothing has been read yet
    torch.cuda.synchronize()
    assert not loss.seems_finite() and not loss.is_finite()
