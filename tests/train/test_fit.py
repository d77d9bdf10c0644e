import numpy as np
import pytest
import torch

from ratfast import InputError, models
from ratfast.arena import Arena
from ratfast.data import Batch
from ratfast.train.fit import Schedule, fit
from ratfast.train.validation import PlainImages, Validator


class FixedLoader:
    """The same few batches over and over."""

    def __init__(self, count: int = 4, scale: float = 1.0):
        generator = torch.Generator().manual_seed(3)
        self.batches = [
            Batch(
                scale * torch.randn(4, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last),
                torch.randint(0, 3, (4,), generator=generator),
            )
            for _ in range(count)
        ]

    def __iter__(self):
        while True:
            yield from self.batches


def validation() -> dict:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
    return {(0, "out"): PlainImages(images, torch.tensor([0, 1, 2, 0, 1, 2]))}


def build(dropout: float = 0.0) -> tuple[models.Classifier, Arena]:
    torch.manual_seed(0)
    model = models.build("resnet18", 3, dropout=dropout, weights=None, image_size=32)
    model.to(memory_format=torch.channels_last)
    return model, Arena(model)


def train(model, arena, loader=None, **changes):
    values = {
        "steps": 4, "probe_steps": 0, "eval_every": 2, "lr": 1e-3, "weight_decay": 1e-4, "precision": "float32"
    }  # fmt: skip
    return fit(
        model,
        arena,
        loader or FixedLoader(),
        Validator(model, validation(), "float32"),
        Schedule(**values | changes),
        lambda n: None,
        lambda v: None,
    )


def test_the_result_is_that_of_torchs_adam() -> None:
    model, arena = build()
    train(model, arena)
    reference, _ = build()
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=1e-4)
    for _, batch in zip(range(4), FixedLoader(), strict=False):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(batch.images), batch.labels).backward()
        optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_probe_leaves_the_backbone_and_makes_no_graph_through_it() -> None:
    model, arena = build(dropout=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    needed_grad = []
    model.featurizer.register_forward_hook(
        lambda module, args, output: needed_grad.append(output.requires_grad)
    )
    train(model, arena, steps=3, probe_steps=3)
    assert not any(needed_grad)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("classifier."), name


def test_a_probe_with_gradients_of_the_backbone_ends_the_same() -> None:
    rows = []
    for head_graph_only in (True, False):
        model, arena = build()
        train(model, arena, steps=4, probe_steps=2, head_graph_only=head_graph_only)
        rows.append(arena.row_copy())
    assert torch.equal(*rows)


def test_after_the_probe_everything_but_the_statistics_is_trained() -> None:
    model, arena = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, arena, steps=3, probe_steps=1)
    trained = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (name in trained), name


def test_evaluations_and_the_best_row() -> None:
    model, arena = build()
    fitted = train(model, arena, steps=6, eval_every=2)
    assert [row["step"] for row in fitted.rows] == [0, 2, 4, 5]
    assert fitted.best_row["val"] == max(row["val"] for row in fitted.rows)
    first = next(row for row in fitted.rows if row["val"] == fitted.best_row["val"])
    assert fitted.best_row is first
    last = arena.row_copy()
    arena.restore(fitted.best)
    assert torch.equal(arena.row, fitted.best)
    assert torch.equal(last, fitted.best) == (first["step"] == 5)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model, arena = build()
    with pytest.raises(InputError, match=r"the loss is .* learning rate was 1e\+30"):
        train(model, arena, lr=1e30, steps=6)
