import json

import pytest
import torch
import torchvision
from torch import nn

from ratfast import models
from ratfast.errors import InputError
from ratfast.models.classifier import Classifier


@pytest.fixture(scope="module")
def resnet18() -> Classifier:
    torch.manual_seed(0)
    model = models.build("resnet18", 5, dropout=0.5, image_size=32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def torchvision_twin(model: Classifier) -> nn.Module:
    """torchvision's own network with the same tensors and the same linear layer."""
    twin = torchvision.models.resnet18(num_classes=model.classifier.out_features)
    state = model.featurizer.network.state_dict()
    twin.load_state_dict(
        state | {"fc.weight": model.classifier.weight.detach(), "fc.bias": model.classifier.bias.detach()}
    )
    return twin.eval()


def test_logits_are_torchvisions(resnet18):
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(resnet18.eval()(images), torchvision_twin(resnet18)(images))


def test_forward_is_head_of_features(resnet18):
    images = torch.randn(2, 3, 32, 32)
    resnet18.eval()
    with torch.no_grad():
        features = resnet18.features(images)
        assert features.shape == (2, 512)
        torch.testing.assert_close(resnet18.head(features), resnet18(images), rtol=0, atol=0)


def test_dropout_is_between_features_and_classifier(resnet18):
    resnet18.train()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(resnet18.features(images), resnet18.features(images), rtol=0, atol=0)
    assert not torch.equal(resnet18(images), resnet18(images))


@pytest.mark.parametrize("part", ["model", "featurizer"])
def test_batch_norm_is_frozen_and_its_affine_parameters_train(part):
    model = models.build("resnet18", 5, image_size=32)
    (model if part == "model" else model.featurizer).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model.featurizer.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    bn = model.featurizer.network.bn1
    assert bn.weight.requires_grad
    assert bn.weight.grad.abs().sum() > 0
    assert bn.bias.grad.abs().sum() > 0


def test_training_gradients_are_those_of_evaluation_mode_batch_norm():
    torch.manual_seed(1)
    model = models.build("resnet18", 5, image_size=32)
    twin = torchvision_twin(model)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    nn.functional.cross_entropy(model.train()(images), labels).backward()
    nn.functional.cross_entropy(twin(images), labels).backward()
    for name, parameter in model.featurizer.network.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.get_parameter(name).grad)


def test_parameter_names_are_domainbeds():
    names = set(models.build("resnet18", 2).state_dict())
    assert {
        "featurizer.network.conv1.weight",
        "featurizer.network.layer4.1.bn2.bias",
        "classifier.weight",
    } <= names
    assert {name.split(".")[0] for name in names} == {"featurizer", "classifier"}
    assert not any(".fc." in name for name in names)


def test_resnet50_has_the_papers_size():
    model = models.build("resnet50", 7)
    assert model.featurizer.n_outputs == 2048
    # torchvision's published count, without its 1000-class layer, with ours.
    assert sum(p.numel() for p in model.parameters()) == 25_557_032 - (2048 * 1000 + 1000) + (2048 * 7 + 7)


@pytest.mark.parametrize("name", models.backbone_names())
def test_description_builds_the_same_model_again(name):
    model = models.build(name, 3, dropout=0.1, image_size=96, classes=["ant", "bee", "cat"])
    description = json.loads(json.dumps(models.describe(model)))
    twin = models.from_description(description)
    assert models.describe(twin) == models.describe(model)
    assert twin.normalisation == model.normalisation
    assert twin.classes == ("ant", "bee", "cat")
    assert {n: t.shape for n, t in twin.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }


def test_description_overrides_normalisation():
    description = models.describe(models.build("resnet18", 2)) | {"mean": [0.1, 0.2, 0.3]}
    assert models.from_description(description).normalisation.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": "resnet51"}, "did you mean 'resnet50'"),
        ({"backbone": None}, "wrong type"),
        ({"num_classes": "2"}, "wrong type"),
        ({"num_classes": 0}, "at least 1"),
        ({"std": [0.0, 1.0, 1.0]}, "above 0"),
        ({"mean": [0.5]}, "3 means"),
        ({"mean": None}, "wrong type"),
        ({"classes": ["a"]}, "1 class names"),
    ],
)
def test_bad_descriptions(change, words):
    description = models.describe(models.build("resnet18", 2)) | change
    with pytest.raises(InputError, match=words):
        models.from_description(description)


def test_description_without_an_entry():
    description = models.describe(models.build("resnet18", 2))
    del description["mean"]
    with pytest.raises(InputError, match="lacks 'mean'"):
        models.from_description(description)
