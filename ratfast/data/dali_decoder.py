"""The decoder of NVIDIA DALI, on the CPU or the GPU: one pipeline for the images of all domains.

It decodes only the part of a JPEG that is needed. On the CPU the pixels are PIL's; on the GPU those of nvJPEG, within
a few levels of libjpeg-turbo's. Files that DALI does not decode as PIL's `convert("RGB")` does (CMYK, palettes,
transparency, 16 bits, extended WebP, rare formats) are decoded by PIL.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from torch import Tensor

from ratfast.data.files import EncodedImage
from ratfast.data.torchvision_decoder import decode_with_pil


class DaliDecoder:
    """Decodes in a DALI pipeline.

    Args:
        max_batch: most images per call.
        device: where the pixels are wanted.
        threads: of the pipeline.

    Attributes:
        name: "dali".
    """

    name = "dali"

    def __init__(self, max_batch: int, device: torch.device, threads: int) -> None:
        self._device = device
        if device.type == "cuda" and device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        on_gpu = device.type == "cuda"
        # Batches are fed one at a time; reading ahead is the loader's business. On the CPU the caller's thread runs
        # the pipeline, instead of two more.
        execution = {"exec_dynamic": True} if on_gpu else {"exec_async": False, "exec_pipelined": False}
        self._options = {
            "batch_size": max_batch,
            "num_threads": threads,
            "device_id": self._device.index if on_gpu else None,
            "prefetch_queue_depth": 1,
            "exec_dynamic": False,
        } | execution
        self._refused: set[str] = set()  # files that PIL decodes, for this DALI cannot
        self._outputs: object = None  # owns the memory of the tensors handed out last
        self._pipeline: Pipeline | None = None
        self._build()  # so that a DALI that cannot start says so here

    def decode(self, images: Sequence[EncodedImage], boxes: np.ndarray) -> tuple[list[Tensor], np.ndarray]:
        """See `Decoder.decode`."""
        own = [row for row, image in enumerate(images) if self._takes(image)]
        try:
            decoded = self._run([images[row] for row in own], boxes[own])
        except RuntimeError:
            # A pipeline that failed is not used again. PIL takes over the files that DALI refuses, or names the
            # first that it cannot decode either.
            self._pipeline = None
            self._refused |= {images[row].path for row in own if not self._decodes(images[row], boxes[row])}
            own = [row for row in own if self._takes(images[row])]
            decoded = self._run([images[row] for row in own], boxes[own])
        found = dict(zip(own, decoded, strict=True))
        within = boxes.copy()
        within[own, :2] = 0  # of these the box is all that was decoded
        pixels = [
            found[row] if row in found else decode_with_pil(image).to(self._device)
            for row, image in enumerate(images)
        ]
        return pixels, within

    def close(self) -> None:
        """Drop the pipeline."""
        self._release()
        self._pipeline = None

    def _takes(self, image: EncodedImage) -> bool:
        """Whether DALI decodes a file, and as PIL does."""
        if image.mode not in ("RGB", "L") or image.transparent or image.path in self._refused:
            return False
        lossy_webp = image.format == "WEBP" and image.data[12:16].tobytes() == b"VP8 "
        return image.format in ("JPEG", "PNG") or lossy_webp

    def _decodes(self, image: EncodedImage, box: np.ndarray) -> bool:
        try:
            self._run([image], box[None])
        except RuntimeError:
            self._pipeline = None
            return False
        return True

    def _build(self) -> Pipeline:
        if self._pipeline is None:
            self._pipeline = _decoding_pipeline(self._device.type == "cuda", **self._options)
            self._pipeline.build()
        return self._pipeline

    def _run(self, images: Sequence[EncodedImage], boxes: np.ndarray) -> list[Tensor]:
        self._release()
        if not images:
            return []
        pipeline = self._build()
        pipeline.feed_input("encoded", [image.data for image in images])
        pipeline.feed_input("boxes", np.ascontiguousarray(boxes, np.int32))
        (output,) = pipeline.run()  # waits for the pixels
        self._outputs = output
        return [torch.from_dlpack(output[row]) for row in range(len(images))]

    def _release(self) -> None:
        """Give the memory of the last pixels back, once nothing on this thread's stream reads them any more."""
        if self._outputs is not None and self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._outputs = None


@pipeline_def
def _decoding_pipeline(on_gpu: bool):
    return _decoded(on_gpu)


def _decoded(on_gpu: bool):
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    boxes = fn.external_source(name="boxes", dtype=types.INT32, ndim=1)
    # Chroma is upsampled as libjpeg-turbo does; EXIF rotation is left alone, as PIL leaves it.
    chroma = {"jpeg_fancy_upsampling": True} if on_gpu else {}
    return fn.decoders.image_slice(
        encoded,
        start=boxes[0:2],
        shape=boxes[2:4],
        axis_names="HW",
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        **chroma,
    )
