"""`ratfast info`: versions, native libraries, devices, backbones, folders. Imports no torch by default."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ratfast import native
from ratfast.cli.context import CONTEXT
from ratfast.models import registry
from ratfast.version import __version__

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "safetensors", "msgspec", "click", "rich")
_DALI_PREFIX = "nvidia-dali"
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


def collect(device: bool = False) -> dict[str, Any]:
    """What `ratfast info` shows, JSON-able.

    Args:
        device: whether to ask torch about CUDA devices, and whether the CUDA library runs on them; imports torch.
    """
    gpus = _torch_gpus() if device else _driver_gpus()
    return {
        "ratfast": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "native": _native(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "backbones": {
            name: "needs " + ", ".join(missing)
            if (missing := registry.find(name).missing_packages())
            else "available"
            for name in registry.backbone_names()
        },
        "folders": _folders(),
    }


def _packages() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    # The wheel's name says for which CUDA it is built: nvidia-dali-cuda130, nvidia-dali-nightly-cuda130, ...
    found = [
        (name, distribution.version)
        for distribution in importlib.metadata.distributions()
        if (name := distribution.name or "").lower().startswith(_DALI_PREFIX) and "plugin" not in name
    ]
    versions.update(found or [("nvidia-dali", None)])
    return versions


def _native() -> dict[str, Any]:
    status = native.status()
    return {
        "cpu_library": _text(status.cpu_library),
        "cuda_library": _text(status.cuda_library),
        "core": _text(status.core),
        "reason": status.reason,
        "cpu_capability": status.cpu_capability,
        "cuda_archs": list(status.cuda_archs),
        "build_info": dict(status.build_info),
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _driver_gpus() -> list[str]:
    """The models of the GPUs that NVIDIA's driver knows: a look at files, where CUDA would take seconds."""
    names = []
    for information in sorted(_NVIDIA_DRIVER.glob("*/information")):
        try:
            lines = information.read_text().splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names


def _torch_gpus() -> list[str]:
    import torch

    native.load_torch_libraries()
    gpus = []
    for index in range(torch.cuda.device_count()):
        native.check_cuda(index)
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
        )
    return gpus


def _folders() -> dict[str, str]:
    home_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return {
        "cache": os.path.join(home_cache, "ratfast"),
        "torch": os.environ.get("TORCH_HOME") or os.path.join(home_cache, "torch"),
    }


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report as text: one `name  value` on a line, groups indented under their name."""
    width = max(len(name) for name in report) + 2
    for name, value in report.items():
        if isinstance(value, dict):
            yield name
            inner = max((len(str(key)) for key in value), default=0) + 2
            yield from (f"  {key:<{inner}}{_shown(item)}" for key, item in value.items())
        else:
            yield f"{name:<{width}}{_shown(value)}"


def _shown(value: Any) -> str:
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@click.command(context_settings=CONTEXT)
@click.option("--device", is_flag=True, help="Ask torch about CUDA devices too (imports torch).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(device: bool, as_json: bool) -> None:
    """Show versions, native libraries and why they are not loaded, devices and backbones."""
    report = collect(device)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for line in lines(report):
            click.echo(line)
