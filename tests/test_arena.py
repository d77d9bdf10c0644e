import copy
import io

import pytest
import torch
from torch import nn

from ratfast.arena import Arena
from ratfast.errors import InputError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embed.weight
        self.register_buffer("scratch", torch.ones(3), persistent=False)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def small_cnn(device="cpu"):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
    )
    return module.to(device).to(memory_format=torch.channels_last)


def test_keeps_objects_values_strides_and_names(device):
    module = small_cnn(device)
    before = {name: (tensor, tensor.clone(), tensor.stride()) for name, tensor in named(module)}
    arena = Arena(module)
    assert set(arena.layout.names) == set(module.state_dict())
    for name, tensor in named(module):
        same, value, stride = before[name]
        assert tensor is same
        assert tensor.stride() == stride
        assert torch.equal(tensor, value)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not module[0].weight.is_contiguous()
    assert arena.is_intact()


def named(module):
    return [*module.named_parameters(), *module.named_buffers()]


def test_tensors_lie_in_the_row_where_the_layout_says(device):
    module = small_cnn(device)
    arena = Arena(module)
    assert arena.row.shape == (arena.layout.nbytes,)
    for name, tensor in named(module):
        entry = arena.layout[name]
        assert tensor.data_ptr() == arena.row.data_ptr() + entry.offset
        assert tuple(tensor.stride()) == entry.strides
    assert arena.layout.nbytes == sum(tensor.nbytes for _, tensor in named(module))


def test_the_longest_section_begins_on_a_cache_line():
    arena = Arena(small_cnn())
    assert arena.layout["1.num_batches_tracked"].offset == 0  # int64 first: float32 would begin at byte 8
    assert arena.parameters_row().data_ptr() % 64 == 0


def test_parameters_row_is_the_parameters(device):
    module = small_cnn(device)
    module[4].bias.requires_grad_(False)
    arena = Arena(module)
    row = arena.parameters_row(torch.float32)
    assert row.numel() == sum(parameter.numel() for parameter in module.parameters())
    with torch.no_grad():
        row.fill_(0.25)
    assert all(bool((parameter == 0.25).all()) for parameter in module.parameters())
    assert not bool((module[1].running_var == 0.25).any())


def test_mixed_types_share_a_row():
    module = nn.ModuleDict(
        {
            "wide": nn.Linear(1, 3, dtype=torch.float64),
            "odd": nn.Linear(1, 3),
            "narrow": nn.Linear(40, 40, dtype=torch.bfloat16),
        }
    )
    expected = copy.deepcopy(module.state_dict())
    arena = Arena(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name])
    for dtype, layer in ((torch.float64, "wide"), (torch.float32, "odd"), (torch.bfloat16, "narrow")):
        assert arena.parameters_row(dtype).numel() == sum(p.numel() for p in module[layer].parameters())
        assert arena.grads_row(dtype).dtype == dtype


def test_tied_parameters_are_held_once():
    module = Tied()
    arena = Arena(module)
    assert arena.layout.names == ("embed.weight", "head.bias")
    assert module.head.weight is module.embed.weight
    assert arena.is_intact()
    arena.load({name: torch.full_like(value, 2.0) for name, value in module.state_dict().items()})
    assert bool((arena.parameters_row() == 2.0).all())


def test_non_dense_tensors_become_dense():
    module = nn.Module()
    module.strided = nn.Parameter(torch.arange(12.0)[::2])
    module.permuted = nn.Parameter(torch.arange(6.0).reshape(2, 3).t())
    module.empty = nn.Parameter(torch.empty(0, 4))
    module.scalar = nn.Parameter(torch.tensor(3.0))
    arena = Arena(module)
    assert torch.equal(module.strided, torch.arange(12.0)[::2])
    assert module.strided.stride() == (1,)
    assert module.permuted.stride() == (1, 3)
    assert torch.equal(module.permuted, torch.arange(6.0).reshape(2, 3).t())
    assert module.scalar.item() == 3.0
    assert arena.is_intact()


def test_autograd_accumulates_into_the_row(device):
    module = small_cnn(device)
    plain = copy.deepcopy(module)
    arena = Arena(module)
    images = torch.randn(2, 3, 6, 6, device=device)
    for _ in range(2):
        module(images).square().sum().backward()
        plain(images).square().sum().backward()
    for (name, parameter), (_, other) in zip(
        module.named_parameters(), plain.named_parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
        assert parameter.grad.stride() == parameter.stride()
    row = arena.grads_row()
    assert row.norm() > 0
    arena.zero_grad()
    assert all(bool((parameter.grad == 0).all()) for parameter in module.parameters())


def test_existing_gradients_move_along():
    module = small_cnn()
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    arena = Arena(module)
    assert all(torch.equal(p.grad, e) for p, e in zip(module.parameters(), expected, strict=True))
    total = sum(e.double().sum() for e in expected)
    torch.testing.assert_close(arena.grads_row().double().sum(), total)


def test_frozen_parameters_have_no_gradient_until_thawed():
    module = small_cnn()
    module[0].weight.requires_grad_(False)
    arena = Arena(module)
    assert module[0].weight.grad is None
    module[0].weight.requires_grad_(True)
    module[4].bias.requires_grad_(False)
    arena.zero_grad()
    assert module[0].weight.grad is not None
    assert module[4].bias.grad is None
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    assert arena.grads_row().norm() > 0


def test_without_gradients():
    module = small_cnn()
    arena = Arena(module, grads=False)
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(InputError, match="made with grads=False"):
        arena.grads_row()


def test_a_gradient_taken_out_is_refused_and_put_back():
    module = small_cnn()
    arena = Arena(module)
    module.zero_grad()  # sets to None
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    with pytest.raises(InputError, match=r"the gradient of 0\.weight .* arena.zero_grad\(\)"):
        arena.grads_row()
    arena.zero_grad()
    assert bool((arena.grads_row() == 0).all())
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    assert arena.grads_row().norm() > 0


@pytest.mark.parametrize(
    ("breakage", "name"),
    [
        (lambda m: m.to(torch.float64), "0.weight"),
        (lambda m: m.to(memory_format=torch.contiguous_format), "0.weight"),
        (lambda m: setattr(m[4].bias, "data", torch.zeros(3)), "4.bias"),
        (lambda m: setattr(m[4], "bias", nn.Parameter(torch.zeros(3))), "4.bias"),
        (lambda m: setattr(m[4], "bias", None), "4.bias"),
        (lambda m: m[4].register_buffer("extra", torch.zeros(1)), "4.extra"),
        (lambda m: m[1].register_buffer("running_mean", torch.zeros(8)), "1.running_mean"),
    ],
    ids=["cast", "memory format", "data", "replaced", "removed", "added", "buffer"],
)
def test_broken_views_are_noticed(breakage, name):
    module = small_cnn()
    arena = Arena(module)
    copy_before = arena.row_copy()
    breakage(module)
    assert not arena.is_intact()
    assert name in arena.problem()
    for use in (
        lambda: arena.row,
        arena.views,
        arena.parameters_row,
        arena.row_copy,
        lambda: arena.restore(copy_before),
        lambda: arena.to("cpu"),
        lambda: arena.load({}),
    ):
        with pytest.raises(InputError, match=name):
            use()


def test_row_copy_and_restore(device):
    module = small_cnn(device)
    arena = Arena(module)
    best = arena.row_copy()
    expected = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        for _, tensor in named(module):
            tensor.zero_()
    assert not torch.equal(arena.row, best)
    arena.restore(best.cpu())
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name])
    out = torch.empty_like(best, device="cpu")
    assert arena.row_copy(out) is out
    assert torch.equal(out, best.cpu())
    for wrong in (torch.zeros(3, dtype=torch.uint8), torch.zeros(arena.layout.nbytes)):
        with pytest.raises(InputError, match=f"expected a row of {arena.layout.nbytes} bytes"):
            arena.restore(wrong)


def test_restore_is_seen_by_autograd():
    module = small_cnn()
    arena = Arena(module)
    best = arena.row_copy()
    loss = module[4](torch.randn(2, 8 * 36, requires_grad=True)).sum()
    arena.restore(best)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_dicts_load_into_the_row():
    module, other = small_cnn(), small_cnn()
    nn.init.ones_(other[4].weight)
    other(torch.randn(4, 3, 6, 6))
    arena = Arena(module)
    arena.load(other.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    module.load_state_dict(small_cnn().state_dict())
    assert arena.is_intact()
    with pytest.raises(InputError, match=r"4\.weight"):
        arena.load({"4.bias": torch.zeros(3)})


def test_torch_save_stores_the_row_once():
    module = small_cnn()  # float32 and int64 in one row
    arena = Arena(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    assert file.tell() < 2 * arena.layout.nbytes + 10_000
    file.seek(0)
    for name, value in torch.load(file, weights_only=True).items():
        assert torch.equal(value, module.state_dict()[name])


def test_a_copy_of_the_module_is_independent():
    module = small_cnn()
    arena = Arena(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        arena.parameters_row().zero_()
    assert all(parameter.norm() > 0 for name, parameter in twin.named_parameters() if name == "0.weight")


def test_the_module_outlives_the_arena():
    module = small_cnn()
    expected = copy.deepcopy(module.state_dict())
    Arena(module)
    garbage = [torch.full((1000,), 7.0) for _ in range(50)]
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name])
    del garbage


def test_to_the_same_device_changes_nothing():
    arena = Arena(small_cnn())
    pointer = arena.row.data_ptr()
    assert arena.to("cpu") is arena
    assert arena.row.data_ptr() == pointer


@pytest.mark.cuda
def test_to_moves_values_gradients_and_other_buffers(cuda):
    module = Tied()
    arena = Arena(module)
    module(torch.arange(5)).sum().backward()
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    grads = [parameter.grad.clone() for parameter in module.parameters()]
    arena.to(cuda)
    assert arena.device == cuda
    assert arena.is_intact()
    assert module.scratch.device == cuda
    for name, value in module.state_dict().items():
        assert torch.equal(value.cpu(), expected[name])
    assert all(torch.equal(p.grad.cpu(), g) for p, g in zip(module.parameters(), grads, strict=True))
    arena.zero_grad()
    module(torch.arange(5, device=cuda)).sum().backward()
    torch.testing.assert_close(module.head.bias.grad.cpu(), grads[-1])
    assert arena.grads_row().norm() > 0


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def sharing():
    module = nn.Module()
    module.a = nn.Parameter(torch.zeros(10))
    module.b = nn.Parameter(module.a.detach()[5:])
    return module


def holding(tensor):
    module = nn.Module()
    module.first = nn.Parameter(torch.zeros(2))
    module.register_buffer("second", tensor)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.ReLU, "ReLU has no parameters"),
        (lambda: nn.LazyLinear(3), "weight is not initialised yet"),
        (lambda: Extra(2, 2), "_extra_state is extra state of type dict"),
        (sharing, "a and b share memory"),
        (lambda: holding(torch.zeros(2, dtype=torch.complex64)), "second has element type complex64"),
        (lambda: holding(torch.zeros(2, device="meta")), "second is on meta"),
        (lambda: holding(torch.eye(2).to_sparse()), "second is sparse"),
    ],
)
def test_refuses_by_name(make, message):
    with pytest.raises(InputError, match=message):
        Arena(make())
