"""Other people's training loops run with our optimizers; each test is skipped where its package is missing."""

import copy

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.optim import FusedAdamW, FusedSGD


def network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def batches(count=8):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator))
        for _ in range(count)
    ]


def by_hand(optimizer_of, *, clip=None, steps=8):
    """The weights after so many steps of torch's own loop."""
    model = network()
    optimizer = optimizer_of(model.parameters())
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def assert_same(model, other):
    for (name, mine), its in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            mine, its, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("whole", [False, True], ids=["forward and backward", "whole step"])
@pytest.mark.parametrize("on_arena", [False, True])
def test_compile(whole, on_arena):
    """The step itself stays eager: a compiled training step leaves its graph for it."""
    model = network()
    if on_arena:
        Arena(model)
    optimizer = FusedAdamW(model.parameters(), lr=0.01, max_grad_norm=1.0, ema_decay=0.9)

    def loss_of(inputs, labels):
        return nn.functional.cross_entropy(model(inputs), labels)

    def train_step(inputs, labels):
        optimizer.zero_grad()
        loss_of(inputs, labels).backward()
        optimizer.step()

    compiled = torch.compile(train_step if whole else loss_of, backend="aot_eager")
    for inputs, labels in batches():
        if whole:
            compiled(inputs, labels)
        else:
            optimizer.zero_grad()
            compiled(inputs, labels).backward()
            optimizer.step()
    assert_same(model, by_hand(lambda params: torch.optim.AdamW(params, lr=0.01), clip=1.0))
    torch._dynamo.reset()


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_lightning(package, clip, tmp_path):
    lightning = pytest.importorskip(package)

    class Module(lightning.LightningModule):
        def __init__(self, kind):
            super().__init__()
            self.network, self.kind = network(), kind

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = self.kind(self.network.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def fit(kind, epochs, checkpoint=None):
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", gradient_clip_val=clip, default_root_dir=tmp_path, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        module = Module(kind)
        loader = torch.utils.data.DataLoader(batches(4), batch_size=None)
        trainer.fit(module, loader, ckpt_path=checkpoint)
        return trainer, module

    trainer, _ = fit(FusedAdamW, 1)
    path = tmp_path / "half.ckpt"
    trainer.save_checkpoint(path)
    _, ours = fit(FusedAdamW, 2, path)
    _, theirs = fit(torch.optim.AdamW, 2)
    assert_same(ours.network, theirs.network)
    _, continued = fit(torch.optim.AdamW, 2, path)  # torch's optimizer goes on from our checkpoint
    assert_same(continued.network, theirs.network)


def test_timm():
    factory = pytest.importorskip("timm.optim")
    scheduler = pytest.importorskip("timm.scheduler")
    from timm.optim._optim_factory import OptimInfo, default_registry
    from timm.utils import NativeScaler

    default_registry.register(OptimInfo("ratfastadamw", FusedAdamW, has_betas=True))
    results = []
    for name, kind in (("ratfastadamw", FusedAdamW), ("adamw", torch.optim.AdamW)):
        model = network()
        # Two groups, biases and norms without decay, as timm's training script makes them.
        optimizer = factory.create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
        assert isinstance(optimizer, kind) and len(optimizer.param_groups) == 2
        schedule = scheduler.CosineLRScheduler(optimizer, t_initial=8, warmup_t=2, warmup_lr_init=1e-4)
        scaler = NativeScaler(device="cpu")
        for index, (inputs, labels) in enumerate(batches()):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            scaler(loss, optimizer, clip_grad=0.5, parameters=model.parameters())
            schedule.step(index + 1)
        results.append(model)
    assert_same(*results)
    groups = factory.param_groups_layer_decay(network(), 0.1, layer_decay=0.5)
    FusedSGD(groups, lr=0.1, momentum=0.9)


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, inputs, labels):
            logits = self.network(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = [
        {"inputs": inputs, "labels": label}
        for xs, ys in batches()
        for inputs, label in zip(xs, ys, strict=True)
    ]

    def train(kind, steps, resume=False, **options):
        model = Model()
        optimizer = kind(model.parameters(), lr=0.01, **options)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 2, 8)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / kind.__name__), max_steps=steps, per_device_train_batch_size=4, use_cpu=True,
            save_steps=4, report_to=[], max_grad_norm=0.5, disable_tqdm=True, seed=3, save_only_model=False,
        )  # fmt: skip
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=data, optimizers=(optimizer, schedule)
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    ours, theirs = train(FusedAdamW, 8), train(torch.optim.AdamW, 8)
    assert_same(ours.network, theirs.network)
    resumed = train(FusedAdamW, 8, str(tmp_path / "FusedAdamW" / "checkpoint-4"), ema_decay=0.9)
    assert_same(resumed.network, theirs.network)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    results = []
    for kind in (FusedAdamW, torch.optim.AdamW):
        model = network()
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, kind(model.parameters(), lr=0.01))
        for inputs, labels in batches():
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        results.append(model)
    assert_same(*results)


def test_distributed_checkpoint_state_dicts():
    """The names of `torch.distributed.checkpoint`, with what we keep beside torch's states."""
    from torch.distributed.checkpoint import state_dict as dcp

    model = network()
    optimizer = FusedAdamW(model.parameters(), lr=0.01, ema_decay=0.9)
    for inputs, labels in batches(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    weights, state = copy.deepcopy(dcp.get_state_dict(model, optimizer))
    twin = network()
    other = FusedAdamW(twin.parameters(), lr=0.5, ema_decay=0.9)
    dcp.set_state_dict(twin, other, model_state_dict=weights, optim_state_dict=state)
    for inputs, labels in batches(3):
        for each, opt in ((model, optimizer), (twin, other)):
            opt.zero_grad()
            nn.functional.cross_entropy(each(inputs), labels).backward()
            opt.step()
    assert_same(model, twin)
    averages = [o.averaged_state_dict(m) for m, o in ((model, optimizer), (twin, other))]
    torch.testing.assert_close(*averages)
