"""A backbone's features with a linear classifier, with DomainBed's structure and parameter names."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ratfast.models.folding import find_pairs
from ratfast.models.registry import Normalisation


class Featurizer(nn.Module):
    """A network without its head: images to features.

    Batch normalisation always runs in evaluation mode, as in DomainBed and the paper: the running statistics
    stay those of the pre-trained network, while the affine parameters are trained.

    Attributes:
        network: the backbone; its parameters are named as in the backbone's own library.
        n_outputs: width D of the features.
        head_name: what the backbone's own library calls the last layer, which is not here.
    """

    def __init__(self, network: nn.Module, n_outputs: int, *, head: str = "fc"):
        super().__init__()
        self.network = network
        self.n_outputs = n_outputs
        self.head_name = head
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images.

        Args:
            images: float (B, 3, H, W).

        Returns:
            Float (B, D).
        """
        return self.network(images)

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Its convolutions with the normalisation after each, for `ratfast.models.folding`; found out once."""
        return find_pairs(self)

    def train(self, mode: bool = True) -> Featurizer:
        """Sets the mode of every layer except batch normalisation, which stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


class Classifier(nn.Module):
    """Featurizer, dropout, linear classifier.

    Attributes:
        featurizer: images (B, 3, H, W) to features (B, D).
        dropout: between features and classifier, active in training mode only.
        classifier: features (B, D) to logits (B, C).
        backbone: its name in the registry.
        normalisation: what the images must have been normalised with.
        image_size: side of the square images that the model is meant for, in pixels.
        classes: the names of the C classes, or None if they are not known.
    """

    def __init__(
        self,
        featurizer: Featurizer,
        num_classes: int,
        *,
        backbone: str,
        normalisation: Normalisation,
        image_size: int,
        dropout: float = 0.0,
        classes: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self.featurizer = featurizer
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(featurizer.n_outputs, num_classes)
        self.backbone = backbone
        self.normalisation = normalisation
        self.image_size = image_size
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images.

        Args:
            images: float (B, 3, H, W).

        Returns:
            Float (B, C).
        """
        return self.head(self.featurizer(images))

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, H, W), before dropout."""
        return self.featurizer(images)

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D): dropout, then the linear classifier."""
        return self.classifier(self.dropout(features))
