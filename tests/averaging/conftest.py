"""Stand-ins for what is not built everywhere."""

import numpy_core
import pytest

from ratfast import native


@pytest.fixture(params=["native", "numpy"])
def core(request, monkeypatch):
    """The torch-free native module, then a stand-in for it on numpy that records its calls."""
    if request.param == "native":
        if native.load_core() is None:
            pytest.skip("the native module is not built")
        return native.load_core()
    monkeypatch.setattr(native, "load_core", lambda: numpy_core)
    return numpy_core
