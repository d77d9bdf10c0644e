"""Frozen batch normalisation inside convolutions: the function, its gradients, and what must not be folded."""

import copy

import pytest
import torch
from torch import nn

from ratfast import InputError, models
from ratfast.models.folding import (
    find_pairs,
    fold_batch_norm,
    folded_once,
    unfold_batch_norm,
    worth_folding,
)


def randomise(model: nn.Module) -> nn.Module:
    """Batch normalisation that does something in every channel."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model


def assert_same_function(plain: nn.Module, folded: nn.Module, images: torch.Tensor) -> None:
    """Outputs, and gradients of every parameter and of the input, agree to the rounding of float64."""
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [model(image) for model, image in zip((plain, folded), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(outputs[0])
    for output in outputs:
        (output * direction).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in folded.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-8 * float(expected[name].grad.abs().max())
        )
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", models.backbone_names())
def test_a_backbone_is_the_same_function_with_the_same_gradients(name):
    try:
        plain = randomise(models.build(name, 5)).double()
    except InputError as error:
        pytest.skip(str(error))
    folded = copy.deepcopy(plain)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert len(fold_batch_norm(folded.featurizer.network)) == norms > 0
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert_same_function(plain, folded, torch.randn(2, 3, 40, 40, dtype=torch.float64))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_kind_of_pair(bias, affine, groups):
    plain = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(6, affine=affine)
    )
    randomise(plain).double().eval()
    folded = copy.deepcopy(plain)
    assert fold_batch_norm(folded) == [("0", "1")]
    assert_same_function(plain, folded, torch.randn(2, 3, 7, 9, dtype=torch.float64))


def test_parameters_stay_the_same_objects_and_steps_are_seen():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).double().eval()
    parameters = list(model.parameters())
    fold_batch_norm(model)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    images = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.5)
    plain = copy.deepcopy(model)
    unfold_batch_norm(plain)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-12, atol=1e-12)


def test_unfolding_restores_the_modules():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).eval()
    images = torch.randn(1, 2, 3, 3)
    expected = model(images)
    before = [set(vars(module)) for module in model.modules()]
    fold_batch_norm(model)
    unfold_batch_norm(model)
    assert [set(vars(module)) for module in model.modules()] == before
    assert torch.equal(model(images), expected)


def test_a_copy_is_folded_into_its_own_layers():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).eval()
    fold_batch_norm(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[1].bias.add_(1.0)
    images = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(twin(images), model(images) + 1)


def test_folding_twice_folds_once():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).eval()
    assert fold_batch_norm(model) and not fold_batch_norm(model)


class OutputUsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, images):
        middle = self.conv(images)
        return self.norm(middle) + middle


class ConvolutionUsedTwice(OutputUsedTwice):
    def forward(self, images):
        return self.norm(self.conv(images)) + self.conv(images + 1)


class NotTraceable(OutputUsedTwice):
    def forward(self, images):
        return self.norm(self.conv(images)) if images.sum() > 0 else images


class OtherOrder(OutputUsedTwice):
    def forward(self, images):
        return self.conv(self.norm(images))


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, images):
        return super().forward(images).relu()


class ScaledConvolution(nn.Conv2d):
    def forward(self, images):
        return 2 * super().forward(images)


class OtherKinds(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 2, 1), ActivatedNorm(2), ScaledConvolution(2, 2, 1), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    "kind", [OtherKinds, OutputUsedTwice, ConvolutionUsedTwice, NotTraceable, OtherOrder]
)
def test_what_cannot_be_folded_is_left_alone(kind):
    model = randomise(kind()).eval()
    images = torch.randn(2, 2, 3, 3)
    expected = model(images)
    assert fold_batch_norm(model) == []
    assert torch.equal(model(images), expected)


def test_normalisation_in_training_mode_is_left_alone():
    assert fold_batch_norm(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).train()) == []
    without_statistics = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert fold_batch_norm(without_statistics.eval()) == []


def test_training_mode_is_refused_while_folded():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).eval()
    fold_batch_norm(model)
    model.train()
    with pytest.raises(RuntimeError, match="unfold_batch_norm"):
        model(torch.randn(1, 2, 3, 3))


def test_frozen_normalisation_gets_no_gradient():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).eval()
    model[1].requires_grad_(False)
    fold_batch_norm(model)
    model(torch.randn(1, 2, 3, 3)).sum().backward()
    assert model[0].weight.grad is not None and model[1].weight.grad is None


def test_folded_once_gives_the_same_bits_and_leaves_no_trace():
    model = randomise(models.build("resnet18", 5, image_size=32)).featurizer
    images = torch.randn(2, 3, 32, 32)
    before = [set(vars(module)) for module in model.modules() if module is not model]
    with torch.no_grad():
        plain = model(images)
        with folded_once(model, model.pairs):
            once = model(images)
            torch.testing.assert_close(once, plain, rtol=1e-4, atol=1e-4)
            assert not torch.equal(once, plain)  # other roundings, or nothing was folded
        assert [set(vars(module)) for module in model.modules() if module is not model] == before
        assert torch.equal(model(images), plain)
        fold_batch_norm(model)
        assert torch.equal(model(images), once)
        with folded_once(model):
            assert torch.equal(model(images), once)
            weights = [vars(module).get("_folded_weights") for module in model.modules()]
            with folded_once(model):
                pass
            assert [vars(module).get("_folded_weights") for module in model.modules()] == weights
        assert torch.equal(model(images), once)  # what was folded before stays so


def test_what_is_worth_folding_has_more_activations_than_weights():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Conv2d(4, 50, 3), nn.BatchNorm2d(50)
    )
    randomise(model).eval()
    pairs, images = find_pairs(model), torch.zeros(1, 3, 11, 11)
    assert pairs == [("0", "1"), ("2", "3")]
    # 100 activations for 108 weights, then 450 for 1800; twice as many and more are worth it.
    assert worth_folding(model, pairs, images, 2) == []
    assert worth_folding(model, pairs, images, 3) == [("0", "1")]
    assert worth_folding(model, pairs, images, 8) == [("0", "1")]
    assert worth_folding(model, pairs, images, 9) == pairs
    assert fold_batch_norm(model, [("0", "1")]) == [("0", "1")]
    assert hasattr(model[0], "_folded_batch_norm") and not hasattr(model[2], "_folded_batch_norm")


def test_weights_folded_once_are_forgotten_when_an_error_ends_the_block():
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))).eval()
    images = torch.randn(1, 2, 3, 3)
    with pytest.raises(KeyError), folded_once(model):
        raise KeyError
    with torch.no_grad():
        expected = model[1](nn.functional.conv2d(images, model[0].weight.mul_(2.0), model[0].bias))
    assert torch.equal(model(images), expected)
