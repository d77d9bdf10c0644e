"""Builds the native libraries with CMake and puts them next to `ratfast/native/__init__.py`.

Environment:
    RATFAST_NATIVE: 0 for a pure Python install, `require` to make a failing native build an error.
    RATFAST_CUDA: 0 to leave the CUDA library out, `require` to make a missing nvcc an error.
    RATFAST_TORCH_DIR: the folder of the package torch to build against, where it is not found by itself.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, as for torch's own extensions, such as `8.0;9.0+PTX`.
    CXX, CUDACXX, CUDA_HOME, CMAKE_BUILD_PARALLEL_LEVEL: as usual.
"""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NATIVE = os.environ.get("RATFAST_NATIVE", "1")
CUDA = os.environ.get("RATFAST_CUDA", "1")
OLDEST_TORCH = (2, 11)
DEFAULT_ARCHITECTURES = ["75-real", "80-real", "90-real", "90-virtual"]


class NativeError(Exception):
    """Why there will be no native library."""


def site_folders() -> list[Path]:
    # pip's isolated builds hide the environment that ratfast is installed into, but sysconfig still knows it.
    paths = [entry or "." for entry in sys.path]
    paths += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return [Path(path) for path in dict.fromkeys(paths)]


def find_torch() -> Path | None:
    """The folder of the package torch. Not imported: that takes seconds, and may be another Python's."""
    given = os.environ.get("RATFAST_TORCH_DIR")
    candidates = [Path(given)] if given else [folder / "torch" for folder in site_folders()]
    for folder in candidates:
        headers, library = folder / "include/torch/csrc/stable/library.h", folder / "lib/libtorch_cpu.so"
        if headers.is_file() and library.is_file() and version_pair(torch_version(folder)) >= OLDEST_TORCH:
            return folder.resolve()
    return None


def torch_version(torch: Path) -> str:
    match = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())
    return match.group(1) if match else "0.0"


def version_pair(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def find_compiler() -> str | None:
    given = os.environ.get("CXX")
    names = [given] if given else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name.split()[0]))), None)


def find_nvcc() -> Path | None:
    candidates = [os.environ.get("CUDACXX")]
    candidates += [
        f"{home}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))
    ]
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((Path(found) for name in candidates if name and (found := shutil.which(name))), None)


def cuda_architectures() -> list[str]:
    """CMake's names for what TORCH_CUDA_ARCH_LIST asks for."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").replace(",", " ").split()
    architectures = []
    for name in given:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST holds {name!r}, expected entries such as 9.0 or 9.0+PTX")
        number = "".join(match.group(1, 2, 3))
        architectures += [f"{number}-real"] + ([f"{number}-virtual"] if match.group(4) else [])
    return list(dict.fromkeys(architectures)) or DEFAULT_ARCHITECTURES


def tool(package: str, name: str) -> str | None:
    """A build tool: from its Python package, else from the PATH."""
    try:
        module = importlib.import_module(package)
        folder = getattr(module, "CMAKE_BIN_DIR", None) or getattr(module, "BIN_DIR", None)
    except ImportError:
        folder = None
    return shutil.which(name, path=folder) if folder else shutil.which(name)


def first_line(command: list[str], pattern: str) -> str:
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    match = re.search(pattern, text)
    return match.group(1) if match else "unknown"


def cuda_runtime_folder(nvcc: Path) -> Path | None:
    """A folder to link CUDA's static runtime from, where the toolkit lacks it: torch itself requires it."""
    command = [nvcc, "--dryrun", "-x", "cu", "/dev/null"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    folders = re.findall(r'-L"?([^"\s]+)', probe)
    if any((Path(folder) / "libcudart_static.a").is_file() for folder in folders):
        return None
    for folder in site_folders():
        for library in sorted(folder.glob("nvidia/cu*/lib/libcudart_static.a")):
            return library.parent
    return None


class BuildNative(build_ext):
    """Runs CMake instead of compiling sources."""

    def run(self) -> None:
        self.built: list[Path] = []
        super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        target.mkdir(parents=True, exist_ok=True)
        try:
            info = self.build_native(target)
        except (NativeError, subprocess.CalledProcessError, OSError) as error:
            reason = (
                "the compilation failed" if isinstance(error, subprocess.CalledProcessError) else str(error)
            )
            if NATIVE == "require":
                raise SystemExit(f"ratfast: {reason} (RATFAST_NATIVE=require)") from error
            print(
                f"\nratfast: {reason}; installing without native libraries, on plain torch.\n",
                file=sys.stderr,
            )
            info = {"reason": reason}
        record = target / "build_info.json"
        record.write_text(json.dumps(info, indent=1) + "\n")
        self.built = [*sorted(target.glob("*.so")), record]

    def copy_extensions_to_source(self) -> None:
        # setuptools would copy only the extension that it knows of.
        destination = ROOT / "ratfast/native"
        for stale in destination.glob("*.so"):
            stale.unlink()
        for path in self.built:
            if path.parent != destination:
                shutil.copy2(path, destination / path.name)

    def build_native(self, target: Path) -> dict[str, object]:
        torch, compiler, cmake = find_torch(), find_compiler(), tool("cmake", "cmake")
        if torch is None:
            raise NativeError(
                "no torch >= 2.11 was found to build against; RATFAST_TORCH_DIR can name its folder"
            )
        if compiler is None:
            raise NativeError("no C++ compiler was found")
        if cmake is None:
            raise NativeError("cmake was not found")
        nvcc = find_nvcc() if CUDA != "0" else None
        cuda_reason = None if nvcc else "RATFAST_CUDA=0" if CUDA == "0" else "nvcc was not found"
        if nvcc is None and CUDA == "require":
            raise SystemExit(f"ratfast: {cuda_reason} (RATFAST_CUDA=require)")
        try:
            self.run_cmake(cmake, target, torch, compiler, nvcc)
        except subprocess.CalledProcessError:
            # Often a compiler too new for nvcc: the CPU library is still to be had.
            if nvcc is None or CUDA == "require":
                raise
            nvcc, cuda_reason = None, "the compilation with CUDA failed"
            self.run_cmake(cmake, target, torch, compiler, nvcc)
        if cuda_reason is not None:
            print(f"\nratfast: built without CUDA: {cuda_reason}.\n", file=sys.stderr)
        return {
            "torch": torch_version(torch),
            "torch_target": ".".join(map(str, OLDEST_TORCH)),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "compiler": first_line([compiler, "--version"], r"([^\n]+)"),
            "nvcc": first_line([str(nvcc), "--version"], r"release [\d.]+, V([\d.]+)") if nvcc else None,
            "cuda_architectures": cuda_architectures() if nvcc else [],
            "cuda_reason": cuda_reason,
            "flags": os.environ.get("CXXFLAGS", ""),
        }

    def run_cmake(self, cmake: str, target: Path, torch: Path, compiler: str, nvcc: Path | None) -> None:
        import pybind11

        build = Path(self.build_temp).resolve() / "cmake"
        # A cache of another generator, torch or compiler is worth nothing.
        shutil.rmtree(build, ignore_errors=True)
        for stale in target.glob("*.so"):
            stale.unlink()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CXX_COMPILER": compiler,
            "RATFAST_TORCH_DIR": torch,
            "RATFAST_OUTPUT_DIR": target,
            "RATFAST_CUDA": "ON" if nvcc else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        environment = dict(os.environ)
        if nvcc:
            options |= {
                "CMAKE_CUDA_COMPILER": nvcc,
                "CMAKE_CUDA_HOST_COMPILER": compiler,
                "CMAKE_CUDA_ARCHITECTURES": ";".join(cuda_architectures()),
            }
            runtime = cuda_runtime_folder(nvcc)
            if runtime is not None:
                old = environment.get("LIBRARY_PATH")
                environment["LIBRARY_PATH"] = f"{runtime}:{old}" if old else str(runtime)
        ninja = tool("ninja", "ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        arguments = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", build, *generator, *arguments], check=True, env=environment)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(os.cpu_count() or 1, 4))
        subprocess.run([cmake, "--build", build, "--parallel", jobs], check=True, env=environment)


def build_requirements() -> list[str]:
    """What pip must bring for the build: torch, but only if the build would use it and finds none.

    torchvision settles the pair of versions: the same that the requirements at run time will settle on.
    """
    asked_by_pip = "egg_info" in sys.argv
    if NATIVE == "0" or not asked_by_pip or find_compiler() is None or find_torch() is not None:
        return []
    return ["torch>=2.11", "torchvision>=0.26"]


setup(
    ext_modules=[] if NATIVE == "0" else [Extension("ratfast.native._core", sources=[])],
    cmdclass={"build_ext": BuildNative},
    setup_requires=build_requirements(),
)
