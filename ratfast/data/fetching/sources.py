"""Where each data set is published, as DomainBed's `scripts/download.py` and torchvision's `MNIST` have it."""

from __future__ import annotations

from ratfast.data.fetching.download import Source

_DRIVE = "https://drive.google.com/uc?export=download&id="
_VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source"
_LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps"
_DOMAINBED = (
    "https://raw.githubusercontent.com/facebookresearch/DomainBed/b93c22a1cfc3b2428398272c1a116c8de1f4139e"
)
_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist")

DUPLICATES = Source(
    "domain_net_duplicates.txt",
    (f"{_DOMAINBED}/domainbed/misc/domain_net_duplicates.txt",),
    "sha256:a52b4ab70203f4f3df381077694dba3e33ff44c26407e1c5faca76919c702770",
)
"""DomainBed's list of the images of DomainNet that it leaves out, a path a line."""


def _mnist(file: str, md5: str) -> Source:
    return Source(file, tuple(f"{mirror}/{file}" for mirror in _MNIST), f"md5:{md5}")


_MNIST_FILES = (
    _mnist("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    _mnist("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
    _mnist("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
    _mnist("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
)

SOURCES: dict[str, tuple[Source, ...]] = {
    "PACS": (Source("PACS.zip", (f"{_DRIVE}1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd",)),),
    "VLCS": (Source("VLCS.tar.gz", (f"{_DRIVE}1skwblH1_okBwxWxmRsp9_qi15hyPpxg8",)),),
    "OfficeHome": (Source("office_home.zip", (f"{_DRIVE}1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC",)),),
    "TerraIncognita": (
        Source("eccv_18_annotations.tar.gz", (f"{_LILA}/eccv_18_annotations.tar.gz",)),
        Source("eccv_18_all_images_sm.tar.gz", (f"{_LILA}/eccv_18_all_images_sm.tar.gz",)),
    ),
    "DomainNet": (
        DUPLICATES,
        Source("clipart.zip", (f"{_VISDA}/groundtruth/clipart.zip",)),
        Source("infograph.zip", (f"{_VISDA}/infograph.zip",)),
        Source("painting.zip", (f"{_VISDA}/groundtruth/painting.zip",)),
        Source("quickdraw.zip", (f"{_VISDA}/quickdraw.zip",)),
        Source("real.zip", (f"{_VISDA}/real.zip",)),
        Source("sketch.zip", (f"{_VISDA}/sketch.zip",)),
    ),
    "SVIRO": (
        Source("sviro_grayscale_rectangle_classification.zip", ("https://sviro.kl.dfki.de/?wpdmdl=1731",)),
    ),
    "RotatedMNIST": _MNIST_FILES,
    "ColoredMNIST": _MNIST_FILES,
}
"""The files of each data set of the catalogue, in the order in which they are dealt with. Where no checksum was
published, none stands here: the published counts of images tell."""
