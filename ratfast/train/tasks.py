"""The data sets of a recipe as the trainings see them: splits, batches, decoded evaluation images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ratfast import data, protocol
from ratfast.config import Recipe
from ratfast.data.checking import departures
from ratfast.errors import InputError
from ratfast.models import Classifier
from ratfast.train import left_out
from ratfast.train.augmented import AugmentedSplit
from ratfast.train.plan import scan_datasets
from ratfast.train.progress import View
from ratfast.train.validation import AugmentedImages, Images, PlainImages, Split

_GIB = 2**30


class Tasks:
    """The target and the auxiliary data sets, scanned and checked.

    Args:
        recipe: names them.
        device: where decoded images are kept and batches arrive.
        display: shows how far checks and decoding are.
        datasets: as another process of the same command found and checked them; None to do so.

    Attributes:
        datasets: by name.
        left_out: the images that are not used since they cannot be read, by data set; empty where they are an error.

    Raises:
        InputError: a folder is missing or of the wrong form, or an image cannot be one.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        display: View,
        datasets: Mapping[str, data.DomainDataset] | None = None,
    ):
        self._data = recipe.data
        self._protocol = recipe.protocol.settled()
        self._device = device
        self._trial_seeds = range(recipe.train.seed, recipe.train.seed + recipe.train.trials)
        self.left_out: left_out.LeftOut = {}
        self.datasets = dict(datasets) if datasets is not None else self._find(recipe, display)
        self._decoded = data.DecodedCache(
            device=device,
            backend=recipe.data.backend,
            max_bytes=int(recipe.data.eval_cache_gib * _GIB),
            max_device_bytes=int(recipe.data.eval_cache_device_gib * _GIB),
            threads=recipe.data.decode_threads,
            progress=partial(display.count, "decoding images for evaluation"),
        )
        side = recipe.data.train_cache_side
        # On the CPU, whose memory is larger: from there, batches are made on its cores.
        self._training = (
            None
            if side is None
            else data.TrainingCache(side, max_bytes=int(recipe.data.train_cache_gib * _GIB))
        )

    def _find(self, recipe: Recipe, display: View) -> dict[str, data.DomainDataset]:
        """Scans and checks the data sets, and settles which images are left out."""
        datasets = scan_datasets(recipe)
        for name, dataset in datasets.items():
            differing = departures(dataset)
            if differing:
                display.say(f"{name} is not as published: {'; '.join(differing)}")
        if recipe.data.on_bad_image == "skip":
            self.left_out = left_out.find_left_out(datasets, Path(recipe.output.dir), display)
            datasets = {
                name: left_out.without(dataset, self.left_out[name]) for name, dataset in datasets.items()
            }
        for name, dataset in datasets.items():
            paths = [domain.paths[i] for domain in dataset.domains for i in domain.usable()]
            data.check_images(paths, progress=partial(display.count, f"checking the images of {name}"))
        return datasets

    def check_split(self, dataset: str, test_env: int | None) -> None:
        """Checks that every training domain has an image to train on and one to validate on.

        Raises:
            InputError: one has not.
        """
        for domain in self.training_domains(dataset, test_env):
            # Without images left out, the sizes are those of every trial.
            splits = [self.split(dataset, domain, trial_seed) for trial_seed in self._trial_seeds]
            kept, held_out = min(splits, key=lambda halves: min(map(len, halves)))
            if not len(kept) or not len(held_out):
                raise InputError(
                    f"data.holdout_fraction {self._data.holdout_fraction:g} leaves {len(kept)} images of domain "
                    f"{self.datasets[dataset].domains[domain].name!r} of dataset {dataset} for training and "
                    f"{len(held_out)} for validation, expected at least one each"
                )

    def split(self, dataset: str, domain: int, trial_seed: int) -> tuple[np.ndarray, np.ndarray]:
        """DomainBed's split of one domain: indices to train on, indices to validate on.

        All images are split; those left out then go from their half, and no other image changes halves.
        """
        chosen = self.datasets[dataset].domains[domain]
        kept, held_out = protocol.split(len(chosen), self._data.holdout_fraction, trial_seed, domain)
        return chosen.usable(kept), chosen.usable(held_out)

    def training_domains(self, dataset: str, test_env: int | None) -> list[int]:
        """Indices of all domains but the held-out one."""
        return [domain for domain in range(len(self.datasets[dataset].domains)) if domain != test_env]

    def loader(
        self,
        dataset: str,
        test_env: int | None,
        trial_seed: int,
        batch_size: int,
        model: Classifier,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> data.Loader:
        """Endless training batches: `batch_size` images of each training domain's training split."""
        return data.build_loader(
            self.datasets[dataset],
            {
                domain: self.split(dataset, domain, trial_seed)[0]
                for domain in self.training_domains(dataset, test_env)
            },
            batch_size=batch_size,
            image_size=self._data.image_size,
            mean=model.normalisation.mean,
            std=model.normalisation.std,
            seed=seed,
            device=self._device,
            dtype=dtype,
            backend=self._data.backend,
            cache=self._training,
            threads=self._data.decode_threads,
        )

    def validation(self, dataset: str, test_env: int | None, trial_seed: int) -> dict[Split, PlainImages]:
        """The held-out halves of the training domains."""
        return {
            (domain, "out"): PlainImages(
                *self.images(dataset, domain, self.split(dataset, domain, trial_seed)[1])
            )
            for domain in self.training_domains(dataset, test_env)
        }

    def evaluations(
        self,
        dataset: str,
        test_env: int | None,
        trial_seed: int,
        loader: data.Loader,
        seed: int,
    ) -> Mapping[Split, Images]:
        """What is evaluated during training, by the protocol's switches `evaluated` and `validation_images`.

        Args:
            dataset: name of the data set.
            test_env: index of the held-out domain.
            trial_seed: the trial.
            loader: of the run, for augmented images.
            seed: of augmented images.
        """
        augmented = self._protocol.validation_images == "augmented"
        everything = self._protocol.evaluated == "all"
        if not augmented and not everything:
            return self.validation(dataset, test_env, trial_seed)
        found: dict[Split, Images] = {}
        for domain in range(len(self.datasets[dataset].domains)):
            if domain == test_env and not everything:
                continue
            halves = zip(("in", "out"), self.split(dataset, domain, trial_seed), strict=True)
            for half, indices in halves:
                if half == "in" and not everything:
                    continue
                if augmented and domain != test_env:
                    labels = torch.as_tensor(
                        self.datasets[dataset].domains[domain].labels[indices], device=self._device
                    )
                    batches = AugmentedSplit(
                        [self.datasets[dataset].domains[domain].paths[i] for i in indices.tolist()],
                        loader,
                        protocol.seed_hash(seed, "evaluation", domain, half),
                    )
                    found[domain, half] = AugmentedImages(batches, labels)
                else:
                    found[domain, half] = PlainImages(*self.images(dataset, domain, indices))
        return found

    def steps_per_epoch(self, dataset: str, trial_seed: int, batch_size: int) -> float:
        """Steps in which the smallest domain is seen once, the held-out one included, as DomainBed counts."""
        domains = range(len(self.datasets[dataset].domains))
        return min(len(self.split(dataset, domain, trial_seed)[0]) / batch_size for domain in domains)

    def images(
        self, dataset: str, domain: int, indices: np.ndarray | None = None
    ) -> tuple[data.DecodedImages, Tensor]:
        """Images and labels `(N,)` of a domain, or of some of its images."""
        chosen = self.datasets[dataset].domains[domain]
        if indices is None and len(chosen.left_out):
            indices = chosen.usable()
        labels = chosen.labels if indices is None else chosen.labels[indices]
        images = self._decoded.get(self.datasets[dataset], domain, self._data.image_size, indices)
        return images, torch.as_tensor(labels, device=self._device)
