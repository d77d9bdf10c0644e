import torch
from torch import nn
from torchvision.transforms import v2

from ratfast import models
from ratfast.train import evaluation
from ratfast.train.validation import AugmentedImages, PlainImages, Validator


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
    sets = {(domain, "out"): PlainImages(*images_and_labels(count)) for domain, count in ((0, 8), (2, 24))}
    validator = Validator(model, sets, "float32")
    frozen = validator(frozen=True)
    assert frozen["val"] == (frozen["env0_out_acc"] + frozen["env2_out_acc"]) / 2
    assert frozen == validator(frozen=False)
    scores = validator.scores()
    assert {domain: score.correct / score.images for (domain, _), score in scores.items()} == {
        domain: frozen[f"env{domain}_out_acc"] for domain in (0, 2)
    }
    model.eval()
    for (domain, _), images in sets.items():
        with torch.no_grad():
            loss = nn.functional.cross_entropy(
                model(evaluation.normalised(images.images, model)), images.labels
            )
        torch.testing.assert_close(scores[domain, "out"].loss, float(loss), rtol=1e-5, atol=0)
    with torch.no_grad():
        nn.init.zeros_(model.featurizer.network.conv1.weight)
    assert validator(frozen=True) == frozen  # still the features of before
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    labels = sets[0, "out"].labels
    assert validator(frozen=True)["env0_out_acc"] == float((labels == 2).float().mean())


def test_what_selects_is_the_held_out_half_of_training_domains() -> None:
    model = small_model()
    splits = {
        (domain, half): PlainImages(*images_and_labels(4)) for domain in range(3) for half in ("in", "out")
    }
    validator = Validator(model, splits, "float32", test_env=1)
    row = validator()
    assert validator.selecting == [(0, "out"), (2, "out")]
    assert row["val"] == (row["env0_out_acc"] + row["env2_out_acc"]) / 2
    assert {f"env{domain}_{half}_acc" for domain, half in splits} == set(row) - {"val", "val_loss"}


def test_augmented_images_are_asked_for_at_every_evaluation() -> None:
    model = small_model()
    asked = []

    def batches(step: int):
        asked.append(step)
        yield torch.zeros(3, 3, 32, 32)
        yield torch.zeros(1, 3, 32, 32)

    labels = torch.tensor([0, 1, 2, 3])
    validator = Validator(model, {(0, "out"): AugmentedImages(batches, labels)}, "float32")
    assert validator(frozen=True, step=0)["val"] == validator(frozen=True, step=50)["val"] == 0.25
    assert asked == [0, 50]
