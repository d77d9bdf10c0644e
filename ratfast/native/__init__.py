"""The native libraries: where they are, loading them once, and why they are not loaded if they are not.

Three files, built by setup.py next to this one: `libratfast_cpu.so` and `libratfast_cuda.so` register the
implementations of torch operators and depend on neither Python's nor torch's C++ ABI; `_core` is a Python
module without torch. Importing this package imports neither torch nor any of them.

Environment:
    RATFAST_NATIVE: 0 loads nothing native, so that everything runs on plain torch.
    RATFAST_CPU_CAPABILITY: `default`, `avx2` or `avx512`: the widest instruction set to use; `default` has no
        instructions for SHA-256 either.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent

_lock = threading.Lock()
_core: ModuleType | None = None
_core_tried = False
_torch_tried = False
_loaded: dict[str, Path] = {}
_problems: dict[str, str] = {}
_cuda_checked: set[int] = set()


@dataclass(frozen=True)
class NativeStatus:
    """What is there, what is loaded, and why the rest is not.

    Attributes:
        cpu_library: the torch operators' CPU library, or None if it was not built.
        cuda_library: the torch operators' CUDA library, or None if it was not built.
        core: the torch-free module, or None if it was not built.
        loaded: which of `cpu`, `cuda` and `core` this process has loaded so far.
        reason: why something native is missing or did not load; None if nothing is amiss.
        cpu_capability: `avx512`, `avx2` or `default`; None without the torch-free module.
        cuda_archs: the CUDA architectures compiled for, such as `90-real`.
        build_info: versions and flags of the build; empty if nothing was built.
    """

    cpu_library: Path | None
    cuda_library: Path | None
    core: Path | None
    loaded: tuple[str, ...] = ()
    reason: str | None = None
    cpu_capability: str | None = None
    cuda_archs: tuple[str, ...] = ()
    build_info: dict[str, Any] = field(default_factory=dict)


def enabled() -> bool:
    """Whether native code may be loaded: False if the environment says RATFAST_NATIVE=0."""
    return os.environ.get("RATFAST_NATIVE", "1") != "0"


def build_info() -> dict[str, Any]:
    """What the build recorded: versions, architectures, flags. Empty for a pure Python install."""
    try:
        return json.loads((FOLDER / "build_info.json").read_text())
    except (OSError, ValueError):
        return {}


def load_core() -> ModuleType | None:
    """The torch-free module `_core`, or None where it is disabled, not built or does not load."""
    global _core, _core_tried
    with _lock:
        if not _core_tried:
            _core_tried = True
            if not enabled():
                _problems["core"] = "RATFAST_NATIVE=0"
            elif _core_file() is None:
                _problems["core"] = _not_built("the module _core")
            else:
                try:
                    _core = importlib.import_module("ratfast.native._core")
                    _loaded["core"] = Path(str(_core.__file__))
                except ImportError as error:
                    _problems["core"] = f"the module _core does not load ({error})"
        return _core


def load_torch_libraries() -> bool:
    """Loads the torch operators' libraries, once per process; imports torch.

    Warns, once, where operators will run on plain torch instead: without the CPU library, or without the CUDA
    library on a machine with a CUDA device.

    Returns:
        Whether the CPU library is loaded.
    """
    global _torch_tried
    with _lock:
        if not _torch_tried:
            _torch_tried = True
            _load_torch_libraries()
        return "cpu" in _loaded


def covers(device_type: str) -> bool:
    """Whether the operators run native code on a type of device, such as `cuda`, in this process."""
    return device_type in _loaded


def check_cuda(device: int) -> bool:
    """Whether the CUDA library, which is loaded, runs on a CUDA device; asks CUDA once per device.

    A library can load and yet not run: the driver is too old for the CUDA it was built with, or the GPU is of an
    architecture that it was not compiled for. Then it counts as not loaded from here on, with one warning, and the
    caller has to take its operators out of use.

    Args:
        device: index of a CUDA device that this process uses.
    """
    with _lock:
        if "cuda" in _loaded and device not in _cuda_checked:
            _cuda_checked.add(device)
            import ctypes  # for this alone

            probe = ctypes.CDLL(str(_loaded["cuda"])).ratfast_cuda_problem
            probe.restype = ctypes.c_char_p
            problem = probe(device)
            if problem is not None:
                archs = ", ".join(build_info().get("cuda_architectures", ())) or "unknown architectures"
                _problems["cuda"] = (
                    f"{_loaded['cuda'].name}, compiled for {archs}, cannot run on cuda:{device} ({problem.decode()})"
                )
                del _loaded["cuda"]
                _warn_of_cuda(_problems["cuda"])
        return "cuda" in _loaded


def _warn_of_cuda(reason: str) -> None:
    warnings.warn(
        f"ratfast runs on plain torch on CUDA devices, which is slower: {reason}",
        RuntimeWarning,
        stacklevel=5,
    )


def _load_torch_libraries() -> None:
    import torch

    if not enabled():
        _problems["cpu"] = "RATFAST_NATIVE=0"
    else:
        _load_torch_library("cpu")
        if torch.version.cuda is not None and "cpu" in _loaded:
            _load_torch_library("cuda")
    if "cpu" not in _loaded:
        warnings.warn(
            f"ratfast runs on plain torch, which is slower: {_problems['cpu']}", RuntimeWarning, stacklevel=4
        )
    elif "cuda" not in _loaded and torch.cuda.is_available():
        reason = _problems.get("cuda", "this torch is built without CUDA")
        _warn_of_cuda(reason)


def _load_torch_library(device: str) -> None:
    import torch

    path = _library(device)
    if path is None:
        _problems[device] = _not_built(
            f"lib{_STEM}{device}.so", "cuda_reason" if device == "cuda" else "reason"
        )
        return
    try:
        torch.ops.load_library(path)
        _loaded[device] = path
    except (OSError, RuntimeError) as error:
        _problems[device] = f"{path.name} does not load ({error})"


def status() -> NativeStatus:
    """What is built and loaded. Loads the torch-free module, but neither torch nor its libraries."""
    core = load_core()
    info = build_info()
    cpu, cuda, core_file = _library("cpu"), _library("cuda"), _core_file()
    problems = dict(_problems)
    if enabled() and cpu is None:
        problems.setdefault("cpu", _not_built(f"lib{_STEM}cpu.so"))
    return NativeStatus(
        cpu_library=cpu,
        cuda_library=cuda,
        core=core_file,
        loaded=tuple(name for name in ("cpu", "cuda", "core") if name in _loaded),
        reason="; ".join(dict.fromkeys(problems.values())) or None,
        cpu_capability=None if core is None else core.cpu_capability(),
        cuda_archs=tuple(info.get("cuda_architectures", ())),
        build_info=info,
    )


_STEM = "ratfast_"


def _library(device: str) -> Path | None:
    path = FOLDER / f"lib{_STEM}{device}.so"
    return path if path.is_file() else None


def _core_file() -> Path | None:
    return next(iter(sorted(FOLDER.glob("_core.*.so"))), None)


def _not_built(what: str, key: str = "reason") -> str:
    reason = build_info().get(key) or "this is a pure Python install"
    return f"{what} was not built ({reason})"
