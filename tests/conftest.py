"""Shared fixtures: the CUDA device (skipped without one, failed instead when RATFAST_REQUIRE_CUDA=1)."""

import os

import hypothesis
import pytest
import torch

# Python started by a test must import the ratfast under test, not a source tree that happens to be the working
# directory.
os.environ["PYTHONSAFEPATH"] = "1"

# The same numbers in every run: a failure can be repeated. `--hypothesis-profile=explore` looks for new ones.
torch.manual_seed(0)
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeat")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cuda() -> torch.device:
    """The first CUDA device."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    reason = "no CUDA device"
    if os.environ.get("RATFAST_REQUIRE_CUDA") == "1":
        pytest.fail(reason + ", and RATFAST_REQUIRE_CUDA=1")
    pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn: the CPU, then the first CUDA device."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")


@pytest.fixture
def native_cpu() -> None:
    """Skips where the operators run on plain torch."""
    from ratfast import native

    if not native.load_torch_libraries():
        pytest.skip("the CPU library is not loaded")
