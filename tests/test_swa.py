"""The update rules against torch's own, through AveragedModel."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils
from torch.optim.swa_utils import AveragedModel

from ratfast import swa


def network(dtype):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(4, 3)).to(dtype)
    model.register_buffer("counts", torch.zeros(3, dtype=torch.int64))
    return model


RULES = {
    "ema": (swa.get_ema_multi_avg_fn(0.9), swa_utils.get_ema_multi_avg_fn(0.9)),
    "slow": (swa.get_ema_multi_avg_fn(0.3), swa_utils.get_ema_multi_avg_fn(0.3)),
    "swa": (swa.get_swa_multi_avg_fn(), swa_utils.get_swa_multi_avg_fn()),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_as_torch(rule, dtype, channels_last, device):
    ours, theirs = RULES[rule]
    torch.manual_seed(0)
    model = network(dtype).to(device)
    averaged = [AveragedModel(copy.deepcopy(model), multi_avg_fn=rule) for rule in (ours, theirs)]
    if channels_last:  # the averaged copies keep the other order
        model.to(memory_format=torch.channels_last)
    for _ in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        for each in averaged:
            each.update_parameters(model)
    ours, theirs = (each.state_dict() for each in averaged)
    # torch computes the step of the running mean in float32.
    tolerance = 1e-6 if (rule, dtype) == ("swa", torch.float64) else 8 * torch.finfo(dtype).eps
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)


def test_running_mean_is_the_mean():
    models = [network(torch.float64) for _ in range(7)]
    averaged = AveragedModel(models[0], multi_avg_fn=swa.get_swa_multi_avg_fn())
    for model in models:
        averaged.update_parameters(model)
    for name, value in averaged.module.named_parameters():
        expected = torch.stack([model.get_parameter(name) for model in models]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("rule", ["ema", "slow"])
def test_buffers_and_integers(rule):
    """With use_buffers, integer buffers reach the rule; torch truncates them, and so must this."""
    ours, theirs = RULES[rule]
    model = network(torch.float32)
    averaged = [
        AveragedModel(copy.deepcopy(model), multi_avg_fn=rule, use_buffers=True) for rule in (ours, theirs)
    ]
    for step in range(5):
        model.counts.copy_(torch.tensor([step * 7, -step * 3, 100]))
        model[1].running_mean.fill_(step)
        model[1].num_batches_tracked.add_(11)
        for each in averaged:
            each.update_parameters(model)
    torch.testing.assert_close(averaged[0].state_dict(), averaged[1].state_dict())
    assert averaged[0].module.counts[0] != 0


def outcome(rule, *arguments):
    try:
        rule(*arguments)
    except RuntimeError as error:
        return type(error)
    return None


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize("rule", RULES)
def test_other_types_do_as_torch_does(rule, dtype):
    """Even where torch raises (its running mean of integers)."""
    lists = [[torch.tensor([1, 2, 3]).to(dtype)] for _ in range(2)]
    current = [torch.tensor([5, 9, 4]).to(dtype)]
    outcomes = [
        outcome(function, averaged, current, torch.tensor(3))
        for function, averaged in zip(RULES[rule], lists, strict=True)
    ]
    assert outcomes[0] == outcomes[1]
    assert torch.equal(lists[0][0], lists[1][0])


def test_mixed_lists():
    """Dense and overlapping tensors in one call, and numbers of models as plain integers."""
    for ours, theirs in RULES.values():
        current = [torch.randn(4, 4), torch.randn(6)[::2], torch.randn(4, 4).double()]
        before = [torch.randn(4, 4).T, torch.randn(3), torch.randn(4, 4).double()]
        lists = [[tensor.clone() for tensor in before] for _ in range(2)]
        ours(lists[0], current, 2)
        theirs(lists[1], current, 2)
        torch.testing.assert_close(lists[0], lists[1])


def test_views_are_written_through():
    memory = [torch.arange(12.0).view(3, 4) for _ in range(2)]
    for function, tensor in zip(RULES["ema"], memory, strict=True):
        function([tensor[:, ::2]], [torch.ones(3, 2)], 1)
    torch.testing.assert_close(memory[0], memory[1])


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_wrong_decay(decay):
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        swa.get_ema_multi_avg_fn(decay)


def test_in_lightning(tmp_path):
    """Lightning's callback for averages takes the functions as they are, and gives what torch's own give there."""
    lightning = pytest.importorskip("lightning")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "WeightAveraging"):
        pytest.skip("this Lightning has no WeightAveraging")

    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch, index):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.randn(40, 4), batch_size=4)

    def trained(function):
        model = Line()
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[callbacks.WeightAveraging(multi_avg_fn=function)],
        )
        trainer.fit(model, data)
        return model.layer.weight.detach().clone()

    for ours, theirs in (
        (swa.get_swa_multi_avg_fn(), swa_utils.get_swa_multi_avg_fn()),
        (swa.get_ema_multi_avg_fn(0.9), swa_utils.get_ema_multi_avg_fn(0.9)),
    ):
        torch.testing.assert_close(trained(ours), trained(theirs))
