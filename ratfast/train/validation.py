"""Evaluations during training: which splits, on which images, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ratfast import protocol
from ratfast.data import DecodedImages
from ratfast.models import Classifier
from ratfast.train.evaluation import BATCH_SIZE, evaluating, extract_features, logits

Split = tuple[int, str]
"""A domain's index, and which half of its images: "in" (trained on) or "out" (held out)."""


@dataclass(frozen=True, eq=False)
class PlainImages:
    """Decoded images as they are; a frozen backbone's features of them need to be computed only once.

    Attributes:
        images: `(N, 3, S, S)` uint8, or what hands out batches of them.
        labels: `(N,)` int64.
    """

    images: Tensor | DecodedImages
    labels: Tensor

    def batches(self) -> Iterator[PlainImages]:
        """The same images in the batches that they are evaluated in."""
        for start in range(0, len(self.labels), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            yield PlainImages(self.images[batch], self.labels[batch])


@dataclass(frozen=True, eq=False)
class AugmentedImages:
    """Images that are augmented anew at every evaluation.

    Attributes:
        batches: given the step, yields float `(B, 3, S, S)`, normalised.
        labels: `(N,)` int64.
    """

    batches: Callable[[int], Iterator[Tensor]]
    labels: Tensor


Images = PlainImages | AugmentedImages


@dataclass(frozen=True)
class Score:
    """What an evaluation of a split says.

    Attributes:
        correct: how many images are classified right.
        images: how many there are.
        loss: mean cross-entropy.
    """

    correct: int
    images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Fraction classified right."""
        return self.correct / max(self.images, 1)


class Validator:
    """Evaluates a model on splits.

    Args:
        model: what is evaluated.
        splits: the images of each.
        precision: `"float32"` or `"bfloat16"`.
        test_env: a domain that selects nothing, whose splits may be among `splits`.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Mapping[Split, Images],
        precision: str,
        test_env: int | None = None,
    ):
        self._model = model
        self._splits = splits
        self._precision = precision
        self._test_env = test_env
        self._frozen: dict[Split, Tensor] = {}

    def __call__(self, *, frozen: bool = False, step: int = 0) -> dict[str, float]:
        """Accuracy per split (`env{i}_out_acc`), their mean over what selects (`val`), and the mean loss there.

        Args:
            frozen: the backbone is as it was at the last call with `frozen=True`.
            step: seeds the augmentation, where there is one.
        """
        scores = self.scores(frozen=frozen, step=step)
        row = {f"env{domain}_{half}_acc": score.accuracy for (domain, half), score in scores.items()}
        selecting = [scores[split] for split in self.selecting]
        row["val"] = protocol.selection_score([score.accuracy for score in selecting])
        row["val_loss"] = sum(score.loss for score in selecting) / len(selecting)
        return row

    @property
    def selecting(self) -> list[Split]:
        """The held-out halves of the training domains."""
        return [split for split in self._splits if split[1] == "out" and split[0] != self._test_env]

    def scores(self, *, frozen: bool = False, step: int = 0) -> dict[Split, Score]:
        """What each split says; the model is left in training mode.

        Args:
            frozen: as in `__call__`.
            step: as in `__call__`.
        """
        self._model.eval()
        scores = {}
        for split, images in self._splits.items():
            found = logits(self._model, self._features(split, images, frozen, step), self._precision).float()
            labels = images.labels
            loss = float(F.cross_entropy(found, labels)) if len(labels) else 0.0
            scores[split] = Score(int((found.argmax(1) == labels).sum()), len(labels), loss)
        self._model.train()
        return scores

    def _features(self, split: Split, images: Images, frozen: bool, step: int) -> Tensor:
        if isinstance(images, AugmentedImages):
            with evaluating(self._model, images.labels.device, self._precision):
                return torch.cat([self._model.features(batch) for batch in images.batches(step)])
        features = self._frozen.get(split) if frozen else None
        if features is None:
            features = extract_features(self._model, images.images, self._precision)
        if frozen:
            self._frozen[split] = features
        return features
