"""PyTorch's own cases: every set of arguments that its tests give to Adam, AdamW and SGD, and those it refuses."""

import pytest
import torch

from ratfast.optim import FusedAdam, FusedAdamW, FusedSGD

pytest.importorskip("expecttest", reason="torch's test helpers import it")
cases = pytest.importorskip("torch.testing._internal.common_optimizers")

PAIRS = {"adam": (FusedAdam, torch.optim.Adam), "adamw": (FusedAdamW, torch.optim.AdamW)}
PAIRS["sgd"] = (FusedSGD, torch.optim.SGD)
DTYPES = [torch.float64, torch.float32]
SHAPES = [(7, 5), (33,), (), (4, 3, 3, 3), (0, 4), (1,)]


def inputs(name, device, dtype):
    """The cases for CUDA, which are more, on every device: we count steps and read tensors on any."""
    given = getattr(cases, f"optim_inputs_func_{name}")("cuda", dtype)
    for case in given:
        kwargs = {}
        for key, value in case.kwargs.items():
            one = isinstance(value, torch.Tensor)
            kwargs[key] = value.to(device) if one and case.kwargs.get("capturable") else value
        yield case.desc, kwargs


def parameters(device, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_set_of_arguments(name, dtype, device):
    ours_kind, theirs_kind = PAIRS[name]
    tried = 0
    for description, kwargs in inputs(name, device, dtype):
        ours, theirs = parameters(device, dtype), parameters(device, dtype)
        optimizer = ours_kind(ours, **kwargs)
        # torch captures on an accelerator only.
        its_kwargs = {
            key: value for key, value in kwargs.items() if key != "capturable" or device.type != "cpu"
        }
        other = theirs_kind(theirs, **its_kwargs, foreach=False)
        generator = torch.Generator().manual_seed(1)
        for step in range(12):
            for mine, its in zip(ours, theirs, strict=True):
                gradient = torch.randn(mine.shape, generator=generator, dtype=torch.float64) * 10.0 ** (
                    step % 3 - 1
                )
                mine.grad, its.grad = gradient.to(device, dtype), gradient.to(device, dtype)
            optimizer.step()
            other.step()
        # torch computes with a float32 learning rate in float32 where it is a tensor.
        rounded = any(isinstance(value, torch.Tensor) for value in kwargs.values())
        tolerance = 2e-5 if dtype == torch.float32 else 1e-6 if rounded else 1e-12
        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, its, rtol=tolerance, atol=tolerance / 10, msg=description)
            for key, value in other.state[its].items():
                if value is not None:
                    torch.testing.assert_close(
                        optimizer.state[mine][key].cpu(),
                        value.cpu(),
                        rtol=tolerance,
                        atol=tolerance / 10,
                        msg=f"{description}: {key}",
                    )
        tried += 1
    assert tried >= 9


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_refusal(name, dtype):
    ours_kind, _ = PAIRS[name]
    tried = 0
    for error in getattr(cases, f"optim_error_inputs_func_{name}")("cpu", dtype):
        case = error.optimizer_error_input
        params = [torch.zeros(2, dtype=dtype, requires_grad=True)] if case.params is None else case.params
        kind, words = error.error_type, error.error_regex
        if kind is UserWarning:
            # torch warns of a parameter that is twice in a group, "in future, this will cause an error": a fused
            # step would write it from two threads at once.
            kind, words = ValueError, "appears twice"
        elif case.kwargs.get("foreach"):
            words = "does not support foreach=True"
        with pytest.raises(kind, match=words):
            ours_kind(params, **case.kwargs)
        tried += 1
    assert tried >= 7
