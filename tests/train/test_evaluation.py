import torch
from torch import nn
from torchvision.transforms import v2

from ratfast import models
from ratfast.train import evaluation
from ratfast.train.fit import Validator


def small_model(num_classes: int = 4) -> models.Classifier:
    torch.manual_seed(0)
    return models.build("resnet18", num_classes, dropout=0.5, weights=None, image_size=32)


def images_and_labels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 4, (count,), generator=generator)


def test_normalised_is_torchvisions() -> None:
    images, _ = images_and_labels(3)
    model = small_model()
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, list(model.normalisation.mean), list(model.normalisation.std))
    result = evaluation.normalised(images, model)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert images.dtype == torch.uint8  # the cache's images are not written to


def test_accuracy_counts_what_a_plain_loop_counts_and_keeps_the_mode() -> None:
    images, labels = images_and_labels(evaluation.BATCH_SIZE + 7)
    model = small_model().train()
    result = evaluation.accuracy(model, images, labels, "float32")
    assert model.training
    model.eval()
    with torch.no_grad():
        correct = sum(
            int(model(evaluation.normalised(image[None], model)).argmax() == label)
            for image, label in zip(images, labels, strict=True)
        )
    assert abs(result * len(labels) - correct) <= 1  # one near tie may fall the other way in another batch


def test_validator_weighs_domains_alike_and_reuses_frozen_features() -> None:
    model = small_model()
    sets = {0: images_and_labels(8), 2: images_and_labels(24)}
    validator = Validator(model, sets, "float32")
    frozen = validator(frozen=True)
    assert frozen["val"] == (frozen["env0_out_acc"] + frozen["env2_out_acc"]) / 2
    assert frozen == validator(frozen=False)
    correct = validator.correct(frozen=False)
    assert {domain: count / len(sets[domain][1]) for domain, count in correct.items()} == {
        domain: frozen[f"env{domain}_out_acc"] for domain in sets
    }
    with torch.no_grad():
        nn.init.zeros_(model.featurizer.network.conv1.weight)
    assert validator(frozen=True) == frozen  # still the features of before
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    labels = sets[0][1]
    assert validator(frozen=True)["env0_out_acc"] == float((labels == 2).float().mean())
