"""The data sets of DomainBed: names, folders, domains, classes, published counts, lengths of training.

Everything that depends on which data set it is reads this table: the protocol's steps and intervals, finding the
folder of a name, `ratfast data list`, `check` and `fetch`. Any other folder of domains is used as it is, with
`DEFAULT_STEPS` and `DEFAULT_INTERVAL`.

Sources: facebookresearch/DomainBed (`datasets.py`, `scripts/download.py`, `misc/vlcs_files.txt`) for names, folders,
domains and classes; facebookresearch/ModelRatatouille (`datasets.py`) for steps and intervals. Counts of PACS, VLCS,
OfficeHome, TerraIncognita (today's) and DomainNet are those that make every accuracy in the logs of Model
Ratatouille's authors a whole number of images; the older TerraIncognita's are stated in khanrc/miro, issue 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ratfast.errors import InputError

DEFAULT_STEPS = 5001
"""Optimizer steps of a run: DomainBed counts from 0 to 5000 inclusive."""

DEFAULT_INTERVAL = 100
"""Steps between evaluations; there is also one at step 0 (after one update) and one at the last step."""

_DIGITS = tuple("0123456789")
_OFFICE_HOME = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet Kettle
Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes
Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon TV Table
Telephone ToothBrush Toys Trash_Can Webcam
"""


@dataclass(frozen=True)
class Edition:
    """Published numbers of images of one edition of a data set.

    Attributes:
        name: what distinguishes it from the others; empty for the only one.
        images: images of each domain, in the order of the domains.
    """

    name: str
    images: tuple[int, ...]

    @property
    def total(self) -> int:
        """Images of all domains."""
        return sum(self.images)


@dataclass(frozen=True)
class Description:
    """One data set.

    Attributes:
        name: DomainBed's name, which seeds the runs on it.
        folder: name of its folder, as DomainBed's download makes it.
        domains: folders of the domains, sorted; the position is DomainBed's environment number.
        class_count: number of classes; None where no published number was found.
        classes: folders of the classes, sorted; empty where they are not listed here.
        editions: published counts, today's first; empty where none were found.
        steps: optimizer steps of a full run.
        interval: steps between evaluations.
        paper: it is one of the five of Model Ratatouille's table.
        note: what a user should know, in a sentence; may be empty.
    """

    name: str
    folder: str
    domains: tuple[str, ...]
    class_count: int | None
    classes: tuple[str, ...] = ()
    editions: tuple[Edition, ...] = ()
    steps: int = DEFAULT_STEPS
    interval: int = DEFAULT_INTERVAL
    paper: bool = False
    note: str = ""

    @property
    def images(self) -> int | None:
        """Published number of images of today's edition."""
        return self.editions[0].total if self.editions else None

    def edition(self, counts: Sequence[int]) -> Edition | None:
        """The edition whose domains have exactly these numbers of images."""
        return next((edition for edition in self.editions if edition.images == tuple(counts)), None)


CATALOGUE: tuple[Description, ...] = (
    Description(
        name="PACS",
        folder="PACS",
        domains=("art_painting", "cartoon", "photo", "sketch"),
        class_count=7,
        classes=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
        editions=(Edition("", (2048, 2344, 1670, 3929)),),
        paper=True,
    ),
    Description(
        name="VLCS",
        folder="VLCS",
        domains=("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        class_count=5,
        classes=("bird", "car", "chair", "dog", "person"),
        editions=(Edition("", (1415, 2656, 3282, 3376)),),
        interval=50,
        paper=True,
    ),
    Description(
        name="OfficeHome",
        folder="office_home",
        domains=("Art", "Clipart", "Product", "Real World"),
        class_count=65,
        classes=tuple(_OFFICE_HOME.split()),
        editions=(Edition("", (2427, 4365, 4439, 4357)),),
        paper=True,
    ),
    Description(
        name="TerraIncognita",
        folder="terra_incognita",
        domains=("location_100", "location_38", "location_43", "location_46"),
        class_count=10,
        classes=(
            *("bird", "bobcat", "cat", "coyote", "dog"),
            *("empty", "opossum", "rabbit", "raccoon", "squirrel"),
        ),
        editions=(
            Edition("today's download", (4741, 9736, 3970, 5883)),
            Edition("the download of older papers", (4879, 9767, 4020, 6122)),
        ),
        paper=True,
        note="The images that can be downloaded today are fewer than the 24,788 that older papers report.",
    ),
    Description(
        name="DomainNet",
        folder="domain_net",
        domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
        class_count=345,
        editions=(
            Edition("without DomainBed's list of duplicates", (48129, 51605, 72266, 172500, 172947, 69128)),
            Edition("with the duplicates", (48833, 53201, 75759, 172500, 175327, 70386)),
        ),
        steps=15001,
        interval=500,
        paper=True,
    ),
    Description(
        name="SVIRO",
        folder="sviro",
        domains=(
            *("aclass", "escape", "hilux", "i3", "lexus"),
            *("tesla", "tiguan", "tucson", "x5", "zoe"),
        ),
        class_count=None,
        interval=300,
    ),
    Description(
        name="RotatedMNIST",
        folder="RotatedMNIST",
        domains=("0", "15", "30", "45", "60", "75"),
        class_count=10,
        classes=_DIGITS,
        editions=(Edition("", (11667, 11667, 11667, 11667, 11666, 11666)),),
        note="Written once as images; DomainBed deals MNIST's images to the domains anew in every run.",
    ),
    Description(
        name="ColoredMNIST",
        folder="ColoredMNIST",
        domains=("+80%", "+90%", "-90%"),
        class_count=2,
        classes=("0", "1"),
        editions=(Edition("", (23333, 23334, 23333)),),
        note="Written once as images; the folders sort +80% first, which is DomainBed's environment 1, not 0.",
    ),
)
"""Every data set that is known by name."""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_BY_PLAIN_NAME = {_plain(name): entry for entry in CATALOGUE for name in (entry.name, entry.folder)}


def find(name: str) -> Description | None:
    """The data set of a name: DomainBed's or its folder's, in any case, with or without `_` and `-`."""
    return _BY_PLAIN_NAME.get(_plain(name))


def canonical_name(name: str) -> str:
    """DomainBed's name of a data set, whose runs it seeds; any other name as it is."""
    entry = find(name)
    return entry.name if entry else name


def find_folder(data_dir: str | Path, name: str) -> Path:
    """The folder of a data set below the folder of all data sets.

    Args:
        data_dir: the folder of all data sets.
        name: a name of the catalogue in any spelling (`OfficeHome` finds `office_home`), or that of a folder.

    Returns:
        The folder; where there is none, the one that would be expected.

    Raises:
        InputError: two folders go by the name.
    """
    root = Path(data_dir).expanduser()
    entry = find(name)
    if entry is None:
        return root / name
    try:
        found = sorted(path for path in root.iterdir() if find(path.name) is entry and path.is_dir())
    except OSError:
        found = []
    if len({path.resolve() for path in found}) > 1:
        raise InputError(
            f"the data set {entry.name} has two folders, {found[0]} and {found[1]}, expected one of them only"
        )
    return found[0] if found else root / entry.folder
