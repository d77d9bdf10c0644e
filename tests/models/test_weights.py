from urllib.error import URLError

import pytest
import torch
import torchvision

from ratfast import models
from ratfast.errors import InputError


@pytest.fixture(scope="module")
def donor() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    return {k: torch.rand_like(v) + 0.5 if v.is_floating_point() else v + 7 for k, v in state.items()}


def features_only(donor):
    return {name: tensor for name, tensor in donor.items() if not name.startswith("fc.")}


def prefixed(prefix, donor):
    return {prefix + name: tensor for name, tensor in features_only(donor).items()}


SPELLINGS = {
    "torchvision": lambda d: d,
    "features only": features_only,
    "DataParallel": lambda d: {f"module.{k}": v for k, v in d.items()},
    "DomainBed featurizer": lambda d: prefixed("network.", d),
    "DomainBed network": lambda d: (
        prefixed("0.network.", d) | {"1.weight": torch.ones(7, 512), "1.bias": torch.ones(7)}
    ),
    "DomainBed algorithm": lambda d: (
        prefixed("featurizer.network.", d)
        | prefixed("network.0.network.", d)
        | {"classifier.weight": torch.ones(7, 512), "network.1.weight": torch.ones(7, 512)}
        | {"update_count": torch.tensor([5])}
    ),
    "DomainBed algorithm's network": lambda d: (
        prefixed("network.0.network.", d) | {"network.1.bias": torch.ones(7)}
    ),
    "ratfast": lambda d: prefixed("featurizer.network.", d) | {"classifier.weight": torch.ones(3, 512)},
    "a part of a larger network": lambda d: (
        prefixed("module.encoder.backbone.", d)
        | {"module.encoder.projector.0.weight": torch.ones(128, 512), "module.queue": torch.ones(2, 3)}
    ),
    "compiled": lambda d: prefixed("_orig_mod.featurizer.network.", d),
    "without counters": lambda d: {k: v for k, v in d.items() if not k.endswith("num_batches_tracked")},
    "float64": lambda d: {k: v.double() if v.is_floating_point() else v for k, v in d.items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_the_names_is_read(tmp_path, donor, spelling):
    path = tmp_path / "weights.pt"
    torch.save(SPELLINGS[spelling](donor), path)
    torch.manual_seed(0)
    model = models.build("resnet18", 4, weights=path)
    torch.manual_seed(0)
    untouched = models.build("resnet18", 4)
    for name, tensor in model.featurizer.network.state_dict().items():
        if not (spelling == "without counters" and name.endswith("num_batches_tracked")):
            assert torch.equal(tensor, donor[name]), name
            assert tensor.dtype == donor[name].dtype
    # The classifier never comes from the file.
    assert torch.equal(model.classifier.weight, untouched.classifier.weight)


def test_safetensors(tmp_path, donor):
    from safetensors.torch import save_file

    save_file(features_only(donor), tmp_path / "weights.safetensors")
    model = models.build("resnet18", 4, weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(model.featurizer.network.conv1.weight, donor["conv1.weight"])


@pytest.mark.parametrize("other", ["resnet50", "efficientnet_lite0"])
def test_another_architecture_is_refused_with_counts_and_an_example(tmp_path, other):
    path = tmp_path / "other.pt"
    ours = models.build("resnet18", 2).featurizer.network.state_dict()
    theirs = models.build(other, 2).featurizer.network.state_dict()
    torch.save(theirs, path)
    with pytest.raises(InputError) as error:
        models.build("resnet18", 2, weights=path)
    text = str(error.value)
    missing = [n for n in ours.keys() - theirs.keys() if not n.endswith("num_batches_tracked")]
    assert "other.pt does not hold the weights of resnet18" in text
    assert f"{len(missing)} names missing, {len(theirs.keys() - ours.keys())} unknown" in text
    assert (
        f"{sum(theirs[n].shape != ours[n].shape for n in ours.keys() & theirs.keys())} of another shape"
        in text
    )
    assert "for example" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda d: {"x": torch.ones(1)}, "names missing"),
        (lambda d: {k: v for k, v in d.items() if k != "bn1.bias"}, "1 names missing.*bn1.bias is missing"),
        (
            lambda d: d | {"layer4.2.conv1.weight": torch.ones(1)},
            "1 unknown.*layer4.2.conv1.weight is not in the network",
        ),
        (
            lambda d: {k: v for k, v in d.items() if not k.startswith("layer4.1.")},
            "10 names missing.*layer4.1.conv1.weight is missing",
        ),
        (
            lambda d: {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)},
            r"holds a head alone \(fc.weight, fc.bias\)",
        ),
        (
            lambda d: d | {"bn1.bias": torch.ones(3)},
            r"1 of another shape.*bn1.bias is \(3,\) instead of \(64,\)",
        ),
        (lambda d: d | {"bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias has values that are not finite"),
    ],
)
def test_bad_state_dicts(tmp_path, donor, break_it, words):
    path = tmp_path / "bad.pt"
    torch.save(break_it(dict(donor)), path)
    with pytest.raises(InputError, match=words):
        models.build("resnet18", 2, weights=path)


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path, donor):
    path = tmp_path / "bad.pt"
    torch.save(donor | {"layer4.1.bn2.bias": torch.ones(3)}, path)
    model = models.build("resnet18", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError):
        models.load_featurizer(model.featurizer, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pt"):
        models.build("resnet18", 2, weights=tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    "error", [URLError("Name or service not known"), TimeoutError("timed out"), RuntimeError("invalid hash")]
)
def test_offline_default_points_to_a_weights_file(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(InputError, match="--weights PATH") as caught:
        models.build("resnet50", 2, weights="default")
    assert "resnet50" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_default_is_imagenet1k_v1(monkeypatch, donor):
    asked = []

    def hand_over(url, *args, **kwargs):
        asked.append(url)
        return dict(donor)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", hand_over)
    model = models.build("resnet18", 2, weights="default")
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth"]
    assert torch.equal(model.featurizer.network.conv1.weight, donor["conv1.weight"])


def test_numbers_out_of_range():
    with pytest.raises(InputError, match="at least 1"):
        models.build("resnet18", 0)
    with pytest.raises(InputError, match="below 1"):
        models.build("resnet18", 2, dropout=1.0)
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        models.build("resnet-18", 2)
    with pytest.raises(InputError, match="3 class names were given for 2"):
        models.build("resnet18", 2, classes=["a", "b", "c"])


def test_what_is_left_out_is_said_and_aliases_are_not(tmp_path, donor):
    model = models.build("resnet18", 4)
    torch.save(donor, tmp_path / "whole.pt")
    assert models.load_featurizer(model.featurizer, tmp_path / "whole.pt") == "left out fc.weight, fc.bias"
    torch.save(features_only(donor), tmp_path / "features.pt")
    assert models.load_featurizer(model.featurizer, tmp_path / "features.pt") == ""
    twice = prefixed("featurizer.network.", donor) | prefixed("network.0.network.", donor)
    torch.save({"model_dict": twice | {"update_count": torch.tensor([5])}}, tmp_path / "model_best.pkl")
    assert models.load_featurizer(model.featurizer, tmp_path / "model_best.pkl") == "left out update_count"


def test_buffers_can_be_left_as_they_are(tmp_path, donor):
    model = models.build("resnet18", 4)
    before = {name: buffer.clone() for name, buffer in model.featurizer.named_buffers()}
    torch.save(donor, tmp_path / "weights.pt")
    models.load_featurizer(model.featurizer, tmp_path / "weights.pt", buffers=False)
    for name, buffer in model.featurizer.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert torch.equal(model.featurizer.network.conv1.weight, donor["conv1.weight"])


def test_a_network_of_another_width_is_refused(tmp_path):
    torch.save(torchvision.models.wide_resnet50_2().state_dict(), tmp_path / "wide.pt")
    with pytest.raises(
        InputError, match=r"of another shape, for example layer1.0.conv1.weight is \(128, 64, 1, 1\)"
    ):
        models.build("resnet50", 2, weights=tmp_path / "wide.pt")
    torch.save(torchvision.models.resnet101().state_dict(), tmp_path / "deep.pt")
    with pytest.raises(InputError, match=r"0 names missing, 306 unknown.*layer3.6.conv1.weight is not in"):
        models.build("resnet50", 2, weights=tmp_path / "deep.pt")
