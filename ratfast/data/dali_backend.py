"""The backend on NVIDIA DALI: one pipeline for the images of all domains, on the CPU or the GPU.

What is the same as in torchvision: the draws, the crops, the resize (bilinear with antialiasing), brightness,
contrast about the mean grey, saturation, grayscale. What differs, and by how much in levels of 255:

- JPEG chroma on the GPU is decoded by nvJPEG (within a few levels of libjpeg-turbo).
- Hue. torchvision shifts it in HSV. Here the colour is rotated about the grey axis and then shifted along
  it so that its largest channel, HSV's value, is what it was: on average 1 to 2 levels off on photographs.
- Saturation and hue are one pass, without torchvision's clamping in between.
- Results are rounded where PIL truncates: up to 1 level per operation.

Files that DALI does not decode as PIL's `convert("RGB")` does (CMYK, palettes, transparency, 16 bits,
extended WebP, rare formats) are decoded by PIL and handed over as uncompressed PPM, so that one pipeline
serves all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, math, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray

from ratfast.data.augmentation import Draws
from ratfast.data.files import EncodedImage, decode_rgb

_GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL's convert("L")


class DaliBackend:
    """Decodes and transforms in two DALI pipelines (augmented and plain), each built when it is first used.

    Attributes:
        name: "dali".
    """

    name = "dali"

    def __init__(
        self,
        image_size: int,
        max_batch: int,
        device: torch.device,
        mean: Sequence[float],
        std: Sequence[float],
        threads: int,
    ) -> None:
        self._size = image_size
        self._device = device
        if device.type == "cuda" and device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._common = {
            "batch_size": max_batch,
            "num_threads": threads,
            "device_id": self._device.index if device.type == "cuda" else None,
            # Batches are fed one at a time; reading ahead is the loader's business.
            "prefetch_queue_depth": 1,
            "exec_dynamic": True,
        }
        self._normalisation = {
            "mean": [255.0 * float(value) for value in mean],
            "std": [255.0 * float(value) for value in std],
        }
        self._pipelines: dict[str, Pipeline] = {}
        self._refused: set[str] = set()  # files that PIL decodes, for this DALI cannot
        self._pipeline("plain")  # so that a DALI that cannot start says so here

    def augment(self, images: Sequence[EncodedImage], draws: Draws) -> torch.Tensor:
        """See `Backend.augment`."""
        boxes = np.array(
            [draws.box(i, image.height, image.width) for i, image in enumerate(images)], np.int32
        )
        inputs = {"start": boxes[:, :2], "shape": boxes[:, 2:], "flip": draws.flip.astype(np.int32)}
        if draws.colour_operations:
            inputs |= {
                "brightness": draws.brightness,
                "contrast": draws.contrast,
                "saturation": draws.saturation,
                "turn": _hue_matrices(draws.hue) @ _saturation_matrices(draws.saturation),
                "grayscale": draws.grayscale,
            }
        kind = "coloured" if draws.colour_operations else "cropped"
        return self._run(kind, images, inputs, torch.float32)

    def resize(self, images: Sequence[EncodedImage]) -> torch.Tensor:
        """See `Backend.resize`."""
        return self._run("plain", images, {}, torch.uint8)

    def close(self) -> None:
        """Drop the pipelines."""
        self._pipelines.clear()

    def _pipeline(self, kind: str) -> Pipeline:
        if kind not in self._pipelines:
            on_gpu = self._device.type == "cuda"
            if kind == "plain":
                pipeline = _plain_pipeline(self._size, on_gpu, **self._common)
            else:
                build = _coloured_pipeline if kind == "coloured" else _cropped_pipeline
                pipeline = build(self._size, on_gpu, self._normalisation, **self._common)
            pipeline.build()
            self._pipelines[kind] = pipeline
        return self._pipelines[kind]

    def _run(
        self, kind: str, images: Sequence[EncodedImage], inputs: dict[str, np.ndarray], dtype: torch.dtype
    ) -> torch.Tensor:
        try:
            return self._attempt(kind, [self._bytes(image) for image in images], inputs, dtype)
        except RuntimeError:
            # A pipeline that failed is not used again. PIL takes over the files that DALI refuses, or names
            # the first that it cannot decode either.
            self._pipelines.pop(kind, None)
            self._refused |= {image.path for image in images if not self._decodes(image)}
            return self._attempt(kind, [self._bytes(image) for image in images], inputs, dtype)

    def _bytes(self, image: EncodedImage) -> np.ndarray:
        return _as_ppm(image) if image.path in self._refused else _for_dali(image)

    def _decodes(self, image: EncodedImage) -> bool:
        try:
            self._attempt("plain", [self._bytes(image)], {}, torch.uint8)
        except RuntimeError:
            self._pipelines.pop("plain", None)
            return False
        return True

    def _attempt(
        self, kind: str, encoded: list[np.ndarray], inputs: dict[str, np.ndarray], dtype: torch.dtype
    ) -> torch.Tensor:
        pipeline = self._pipeline(kind)
        pipeline.feed_input("encoded", encoded)
        for name, values in inputs.items():
            pipeline.feed_input(name, np.ascontiguousarray(values))
        (output,) = pipeline.run()
        batch = torch.empty((len(encoded), self._size, self._size, 3), dtype=dtype, device=self._device)
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        feed_ndarray(output.as_tensor(), batch, cuda_stream=stream)
        return batch.permute(0, 3, 1, 2)


def _for_dali(image: EncodedImage) -> np.ndarray:
    """The bytes to give DALI: the file's own where DALI decodes them as PIL does."""
    if image.mode in ("RGB", "L") and not image.transparent:
        if image.format in ("JPEG", "PNG"):
            return image.data
        if image.format == "WEBP" and image.data[12:16].tobytes() == b"VP8 ":
            return image.data
    return _as_ppm(image)


def _as_ppm(image: EncodedImage) -> np.ndarray:
    pixels = np.asarray(decode_rgb(image))
    header = b"P6 %d %d 255\n" % (pixels.shape[1], pixels.shape[0])
    return np.concatenate([np.frombuffer(header, np.uint8), pixels.reshape(-1)])


def _saturation_matrices(factors: np.ndarray) -> np.ndarray:
    """Matrices (N, 3, 3) that blend each pixel with its grey: factor * x + (1 - factor) * grey."""
    factors = factors.astype(np.float64)[:, None, None]
    return (factors * np.eye(3) + (1 - factors) * _GRAY[None, None, :]).astype(np.float32)


def _hue_matrices(turns: np.ndarray) -> np.ndarray:
    """Matrices (N, 3, 3) that rotate about the grey axis; a third of a turn permutes red, green and blue."""
    angle = 2 * np.pi * turns.astype(np.float64)
    same = (1 + 2 * np.cos(angle)) / 3
    last = (1 - np.cos(angle)) / 3 - np.sin(angle) / np.sqrt(3)
    following = (1 - np.cos(angle)) / 3 + np.sin(angle) / np.sqrt(3)
    rows = [[same, last, following], [following, same, last], [last, following, same]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2).astype(np.float32)


def _decoder(on_gpu: bool) -> dict:
    # Chroma is upsampled as libjpeg-turbo does on the CPU; EXIF rotation is left alone, as PIL leaves it.
    options = {"adjust_orientation": False, "output_type": types.RGB, "device": "mixed" if on_gpu else "cpu"}
    return options | ({"jpeg_fancy_upsampling": True} if on_gpu else {})


def _resized(images, size: int):
    return fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)


def _cropped(size: int, on_gpu: bool):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    crop = fn.decoders.image_slice(encoded, start=start, shape=shape, axis_names="HW", **_decoder(on_gpu))
    return _resized(crop, size)


def _normalised(images, normalisation: dict[str, list[float]]):
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    return fn.crop_mirror_normalize(
        images, mirror=flip, dtype=types.FLOAT, output_layout="HWC", **normalisation
    )


@pipeline_def
def _plain_pipeline(size: int, on_gpu: bool):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    return _resized(fn.decoders.image(encoded, **_decoder(on_gpu)), size)


@pipeline_def
def _cropped_pipeline(size: int, on_gpu: bool, normalisation: dict[str, list[float]]):
    return _normalised(_cropped(size, on_gpu), normalisation)


@pipeline_def(enable_conditionals=True)
def _coloured_pipeline(size: int, on_gpu: bool, normalisation: dict[str, list[float]]):
    images = _jittered(_cropped(size, on_gpu), on_gpu)
    grayscale = fn.external_source(name="grayscale", dtype=types.BOOL, ndim=0)
    if grayscale:
        images = fn.hsv(images, saturation=0.0)
    return _normalised(images, normalisation)


def _jittered(images, on_gpu: bool):
    def factor(name: str, ndim: int = 0):
        return fn.external_source(name=name, dtype=types.FLOAT, ndim=ndim)

    def beside(factors):  # arithmetic wants both operands on one device
        return factors.gpu() if on_gpu else factors

    images = fn.brightness_contrast(images, brightness=factor("brightness"))
    mean = fn.reductions.mean(_gray(images))
    contrast = factor("contrast")
    if on_gpu:  # operators take their named arguments from the CPU alone, and this mean is on the GPU
        images = fn.cast((images - mean) * contrast.gpu() + mean, dtype=types.UINT8)
    else:
        images = fn.brightness_contrast(images, contrast=contrast, contrast_center=mean)
    saturation = beside(factor("saturation"))
    value = fn.reductions.max(images, axes=2, keep_dims=True) * saturation + _gray(images) * (
        1.0 - saturation
    )
    turned = fn.coord_transform(images, M=factor("turn", 2), dtype=types.FLOAT)
    shift = math.min(value, 255.0) - fn.reductions.max(turned, axes=2, keep_dims=True)
    # With its default factors this operator is the quickest way to round and clamp.
    return fn.brightness_contrast(turned + shift, dtype=types.UINT8)


def _gray(images):
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
