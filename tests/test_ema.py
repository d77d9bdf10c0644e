"""ModelEma against timm's ModelEmaV3 where timm is installed, and against its formula everywhere."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ratfast import InputError, swa
from ratfast.ema import ModelEma

SETTINGS = [
    {"decay": 0.9},
    {"decay": 0.99, "use_warmup": True},
    {"decay": 0.99, "use_warmup": True, "warmup_gamma": 3.0, "warmup_power": 0.75, "min_decay": 0.2},
    {"decay": 0.9, "update_after_step": 3, "exclude_buffers": True},
]


def network(dtype=torch.float32):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(4, 3)).to(dtype)
    model.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
    return model


def wander(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 3)


def by_formula(average, model, decay, exclude_buffers):
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in model.state_dict().items():
        if not value.is_floating_point() or (exclude_buffers and name in buffers):
            average[name] = value.clone()
        else:
            average[name] = decay * average[name].double() + (1 - decay) * value.double()


def decay_by_formula(
    step, decay, use_warmup=False, warmup_gamma=1.0, warmup_power=2 / 3, min_decay=0.0, **other
):
    if step is None:
        return decay
    n = max(0, step - other.get("update_after_step", 0) - 1)
    if n == 0:
        return 0.0
    return max(min(1 - (1 + n / warmup_gamma) ** -warmup_power, decay), min_decay) if use_warmup else decay


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(settings, dtype, told, device):
    model = network(dtype).to(device)
    ema = ModelEma(model, **settings)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(8):
        wander(model)
        at = step if told else None
        ema.update(model, step=at)
        decay = decay_by_formula(at, **settings)
        assert ema.get_decay(at) == pytest.approx(decay)
        by_formula(average, model, decay, settings.get("exclude_buffers", False))
    for name, value in ema.module.state_dict().items():
        tolerance = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(value.double(), average[name].double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_same_as_timm(settings, told):
    timm_utils = pytest.importorskip("timm.utils.model_ema")
    model = network()
    ours, theirs = ModelEma(model, **settings), timm_utils.ModelEmaV3(model, **settings)
    for step in range(8):
        wander(model)
        ours.update(model, step=step if told else None)
        theirs.update(model, step=step if told else None)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())
    ours.set(network())
    theirs.set(model)


def test_the_model_is_left_alone_and_not_followed_by_itself():
    model = network()
    before = copy.deepcopy(model.state_dict())
    ema = ModelEma(model, 0.5)
    assert not ema.module.training and model.training
    ema.update(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    wander(model)
    torch.testing.assert_close(ema.module.state_dict(), before)
    ema.set(model)
    torch.testing.assert_close(ema.module.state_dict(), model.state_dict(), rtol=0, atol=0)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(ema(images), ema.module(images))


def test_state_dict_deepcopy_and_pickling():
    model = network()
    ema = ModelEma(model, 0.9, use_warmup=True)
    wander(model)
    ema.update(model, step=5)
    again = ModelEma(network(), 0.9, use_warmup=True)
    again.load_state_dict(ema.state_dict())
    file = io.BytesIO()
    torch.save(ema, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    copies = [again, copy.deepcopy(ema), pickle.loads(pickle.dumps(ema)), loaded]
    wander(model)
    for each in [ema, *copies]:
        each.update(model, step=6)
    for each in copies:
        torch.testing.assert_close(each.state_dict(), ema.state_dict(), rtol=0, atol=0)


def test_memory_formats_types_and_tied_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    model[2].weight = model[1].weight
    ema = ModelEma(model, 0.75, dtype=torch.float32)
    model.to(memory_format=torch.channels_last)
    start = {name: value.double() for name, value in model.state_dict().items()}
    wander(model)
    ema.update(model)
    for name, value in ema.module.state_dict().items():
        assert value.dtype == torch.float32
        expected = 0.75 * start[name] + 0.25 * model.state_dict()[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    assert ema.module[2].weight is ema.module[1].weight


def test_decay_zero_forgets_what_is_not_finite():
    model = nn.Linear(2, 2)
    ema = ModelEma(model, 0.9)
    with torch.no_grad():
        ema.module.weight.fill_(torch.nan)
    ema.update(model, step=0)
    assert torch.equal(ema.module.weight, model.weight)


def test_wrong_input():
    with pytest.raises(InputError, match=r"decay is 1\.5"):
        ModelEma(nn.Linear(2, 2), 1.5)
    ema = ModelEma(nn.Linear(2, 2))
    with pytest.raises(InputError, match="'weight' has shape"):
        ema.update(nn.Linear(3, 2))
    with pytest.raises(InputError, match="'bias' is in one"):
        ema.set(nn.Linear(2, 2, bias=False))


@pytest.mark.parametrize(
    "rule", [swa.get_ema_multi_avg_fn(0.9), swa.get_swa_multi_avg_fn()], ids=["ema", "swa"]
)
def test_averaged_model_is_copied_and_its_state_restored(rule):
    """What Lightning's WeightAveraging does with AveragedModel: deepcopy, state dicts, swapping of weights."""
    model = network()
    averaged = AveragedModel(model, multi_avg_fn=rule, device="cpu")
    for _ in range(2):
        wander(model)
        averaged.update_parameters(model)
    again = AveragedModel(network(), multi_avg_fn=rule)
    again.load_state_dict(averaged.state_dict())
    copied = copy.deepcopy(averaged)
    wander(model)
    for each in (averaged, again, copied):
        each.update_parameters(model)
    torch.testing.assert_close(again.state_dict(), averaged.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(copied.state_dict(), averaged.state_dict(), rtol=0, atol=0)
    assert averaged.n_averaged == 3
    model.load_state_dict(averaged.module.state_dict())
