"""One network of each family of torchvision and timm: the library's own features, and batch norm frozen."""

import pytest
import torch
import torchvision
from torch.nn.modules.batchnorm import _BatchNorm

from ratfast import models
from ratfast.errors import InputError

TORCHVISION = (
    "resnet18", "resnext50_32x4d", "regnet_y_400mf", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0", "googlenet", "convnext_tiny", "vit_b_16", "swin_t",
)  # fmt: skip
TIMM = (
    "resnet10t",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "nf_resnet26",
)
SIZE = 64


def build(name: str) -> models.Classifier:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return models.build(name, 5, image_size=SIZE)


FAMILIES = [f"torchvision/{name}" for name in TORCHVISION] + [f"timm/{name}" for name in TIMM]


@pytest.mark.parametrize("name", FAMILIES)
def test_features_gradients_and_frozen_statistics(name):
    model = build(name)
    model.train()
    images = torch.randn(2, 3, SIZE, SIZE)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    assert not any(module.training for module in model.modules() if isinstance(module, _BatchNorm))
    features = model.features(images)
    assert features.shape == (2, model.featurizer.n_outputs)
    # Nothing in the network is random in training: dropout is the recipe's, between features and classifier.
    torch.testing.assert_close(model.features(images), features, rtol=0, atol=0)
    model(images).square().sum().backward()
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, before[key]), key
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert without == []


@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_are_torchvisions_and_its_checkpoint_is_read(name, tmp_path):
    options = {"image_size": SIZE} if name.startswith("vit_") else {}
    options |= {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(name, weights=None, **options).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = models.build(f"torchvision/{name}", 1000, weights=tmp_path / "weights.pth", image_size=SIZE).eval()
    ours.classifier.load_state_dict(theirs.get_submodule(ours.featurizer.head_name).state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", TIMM)
def test_features_are_timms_and_its_checkpoint_is_read(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    options = {"img_size": SIZE} if name.startswith("vit_") else {}
    theirs = timm.create_model(name, **options).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "weights.pth.tar")
    ours = models.build(f"timm/{name}", 1000, weights=tmp_path / "weights.pth.tar", image_size=SIZE).eval()
    ours.classifier.load_state_dict(theirs.get_classifier().state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    mean, std = theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"]
    assert (ours.normalisation.mean, ours.normalisation.std) == (tuple(mean), tuple(std))


def test_normalisation_is_that_of_the_weights():
    assert build("torchvision/convnext_tiny").normalisation == models.registry.IMAGENET
    pytest.importorskip("timm")
    assert build("timm/vit_tiny_patch16_224").normalisation == models.Normalisation((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "torchvision/resnet51",
            "no image classifier 'resnet51'; did you mean 'torchvision/resnet50'",
        ),
        ("torchvision/squeezenet1_0", "no linear layer at its end"),
        ("torchvision/vit_b_16", "cannot take images of 65 pixels"),
        ("timm/resnet51x", "timm has no network 'resnet51x'; did you mean 'timm/resnet"),
        ("torchvision/", "unknown backbone"),
        ("resnet51", "unknown backbone 'resnet51', expected one of .*did you mean 'resnet50'"),
    ],
)
def test_what_is_not_there(name, words):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(InputError, match=words):
        models.build(name, 2, image_size=65)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setattr(models.registry.importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(
        InputError, match=r"the backbone timm/resnet10t needs the package timm: .*ratfast\[timm\]"
    ):
        models.build("timm/resnet10t", 2)


def test_a_recipe_may_name_them_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from ratfast import config; "
        "config.Recipe(model=config.Model(backbone='timm/vit_tiny_patch16_224')); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
