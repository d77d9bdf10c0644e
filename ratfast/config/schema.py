"""The recipe of a training: every key, its type, its range and its default, in one place.

Paths in a recipe are relative to the working directory.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from ratfast.errors import InputError
from ratfast.models import registry

_INT_MAX = 2**31 - 1
_Count: TypeAlias = Annotated[int, Meta(ge=1, le=_INT_MAX)]
_Index: TypeAlias = Annotated[int, Meta(ge=0, le=_INT_MAX)]
_Gib: TypeAlias = Annotated[float, Meta(ge=0, le=2**20)]
_Text: TypeAlias = Annotated[str, Meta(min_length=1)]

ROWS = ("vanilla", "erm", "moving-average", "swad", "soups", "inter-training", "fusing", "ratatouille")
"""The rows that `train.rows` may name; "all" names them all."""

Row: TypeAlias = Literal[
    "vanilla", "erm", "moving-average", "swad", "soups", "inter-training", "fusing", "ratatouille", "all"
]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections have in common: immutable, keyword arguments only, no unknown keys."""


class Data(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[data]`: the image folders.

    Attributes:
        dir: the folder that holds the data sets' folders.
        target: the data set that the final network is for: a name of `ratfast.catalogue`, or a folder in `dir`.
        test_env: the domain of the target held out for testing, by index in alphabetical order or by name.
        aux: the data sets to fine-tune on first, named likewise.
        holdout_fraction: share of each domain kept for validation.
        backend: what decodes images; "auto" takes DALI for CUDA devices and torchvision elsewhere.
        decode_threads: threads that read and decode images; unset, as many as the process may use, at most 3: with as
            many of DALI's, the loader's one and the main one a run has at most eight then.
        image_size: side of the square images in pixels.
        train_cache_side: unset, training images are decoded whenever they are drawn; else they are decoded once, and
            kept with their shorter side resized to so many pixels if it is longer (`ratfast.data.training_cache`
            says what that does to the crops).
        train_cache_gib: most memory of each worker for them, in GiB; images beyond it are decoded whenever they are
            drawn.
        eval_cache_gib: most memory of each worker for decoded evaluation images, in GiB; images beyond it are
            decoded at each use.
        eval_cache_device_gib: most memory of a CUDA device for them, in GiB; what does not fit goes to the former.
        on_bad_image: what an image that cannot be read does: "error" ends the command and names it; "skip" leaves it
            out, of training, validation and test: every image is decoded once before anything is split.
    """

    dir: _Text | None = None
    target: _Text | None = None
    test_env: _Index | _Text | None = None
    aux: tuple[_Text, ...] = ()
    holdout_fraction: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    backend: Literal["auto", "dali", "torchvision"] = "auto"
    decode_threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    image_size: Annotated[int, Meta(ge=8, le=8192)] = 224
    train_cache_side: Annotated[int, Meta(ge=8, le=8192)] | None = None
    train_cache_gib: _Gib = 8.0
    eval_cache_gib: _Gib = 16.0
    eval_cache_device_gib: _Gib = 8.0
    on_bad_image: Literal["error", "skip"] = "error"


class Model(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[model]`: the network and what it starts from.

    Attributes:
        backbone: a name of `ratfast.models.backbone_names()`.
        weights: of the pre-trained backbone: "default", "none" (random) or a file.
        aux_weights: networks fine-tuned on auxiliary tasks, beside those that are trained: files, patterns, folders of
            files (each a start of its own), folders of a sweep's runs, or of several sweeps. Heads are left out.
    """

    backbone: _Text = "resnet50"
    weights: _Text = "default"
    aux_weights: tuple[_Text, ...] = ()

    def initial_weights(self) -> Path | Literal["default"] | None:
        """`weights` as `ratfast.models.build` takes it."""
        if self.weights == "none":
            return None
        return "default" if self.weights == "default" else Path(self.weights)


class Protocol(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[protocol]`: where training and evaluation follow the official release, and where they do better.

    `protocol = "official"` alone sets `name`. A switch that is unset has the first of its values under the name
    "ratfast" and the second under "official". Each has an effect on numbers (or on time alone, where it says so).

    Attributes:
        name: "ratfast" or "official", the release of Model Ratatouille with its quirks.
        validation_images: what validation during training looks at: "plain" images, or "augmented" ones, drawn anew at
            each evaluation, as the release does since a domain has one transform for both its splits.
        evaluated: "validation", the splits that select, or "all" splits at every evaluation, the test domain's too
            (time alone).
        test_images: "all" images of the test domain for every row of the table, or "split": for rows that are a single
            run only those of its in-split, as DomainBed's collect_results, and all for averages.
        probe_gradients: while the head alone is trained, gradients of the "head" alone, or of the whole "network",
            which the release computes and drops (time alone).
        auxiliary_order: how the runs on an auxiliary data set are numbered: by their "seed", or by the md5 of their
            "arguments", which hold paths, so that the same recipe elsewhere starts other runs from other weights.
    """

    name: Literal["ratfast", "official"] = "ratfast"
    validation_images: Literal["plain", "augmented"] | None = None
    evaluated: Literal["validation", "all"] | None = None
    test_images: Literal["all", "split"] | None = None
    probe_gradients: Literal["head", "network"] | None = None
    auxiliary_order: Literal["seed", "arguments"] | None = None

    def settled(self) -> Protocol:
        """The same with every switch set."""
        column = ("ratfast", "official").index(self.name)
        return Protocol(
            name=self.name,
            **{
                switch: getattr(self, switch) or values[column]
                for switch, values in PROTOCOL_SWITCHES.items()
            },
        )


PROTOCOL_SWITCHES = {
    "validation_images": ("plain", "augmented"),
    "evaluated": ("validation", "all"),
    "test_images": ("all", "split"),
    "probe_gradients": ("head", "network"),
    "auxiliary_order": ("seed", "arguments"),
}
"""The switches of `[protocol]` with their values under "ratfast" and under "official"."""


class Train(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[train]`: the trainings.

    Attributes:
        batch_size: images of each training domain in a batch.
        rows: what is compared, as the rows of the paper's table (`ratfast.train.rows` defines them): "vanilla", "erm",
            "moving-average", "swad", "soups", "inter-training", "fusing", "ratatouille", or "all". Rows share the runs
            that are the same.
        steps: optimizer steps of each fine-tuning; unset, DomainBed's for the data set.
        eval_every: steps between two evaluations; unset, DomainBed's interval for the data set.
        probe_steps: steps of a run's own linear probe, part of `steps`; unset, the paper's share of `steps`.
        head_steps: steps of the linear probe shared by all runs; unset, `steps`.
        lr_scale: multiplies the drawn learning rates.
        runs: fine-tunings on the target in each trial.
        trials: repetitions with other splits and draws.
        aux_runs: fine-tunings on each auxiliary data set.
        seed: the first trial's seed.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of the networks' arithmetic; "auto" is bfloat16 on CUDA devices and float32 elsewhere, and under the
            official protocol.
        threads: of the CPU, for each worker; unset, torch's own choice for one, and for several a share of the
            processors each. The last digits of results may depend on it.
        workers: processes that train at a time, each on a GPU of its own where there is one; unset, one for each GPU
            that "auto" finds, else one, which is the command itself.
        retries: how often a training or an average is tried again by another worker when its worker failed or was
            lost; a mistake in the input is not tried again.
        ray: address of a Ray cluster that carries the trainings out: "local" for one of this machine alone, "auto" for
            the one that runs on it, "host:port" or "ray://host:port". Its machines must all see the folders of this
            recipe under the same names; with `output.store`, the output folder is one of each machine's own.
        snapshot_seconds: time between two states of a training that are kept for the case that it dies, in seconds.
        fold_batch_norm: "on" trains with batch normalisation folded into the convolutions anew at each update
            (`ratfast.models.folding`): the same function and gradients in fewer passes over memory; "off" keeps its
            passes; "auto" is "on", but "off" under the official protocol, whose roundings it keeps. Evaluations always
            fold.
        cuda_graph: on CUDA, "auto" captures an update into a CUDA graph and replays it; where that fails, updates are
            made one operation at a time, as with "off", and the output says so (time alone).
        compile: "on" gives the updates of the whole network to `torch.compile`, which fuses what is left between the
            convolutions; each training then begins with a compilation. On a CPU it is slower. The last digits differ.
    """

    rows: Annotated[tuple[Row, ...], Meta(min_length=1)] = ("inter-training", "ratatouille")
    batch_size: _Count = 32
    steps: _Count | None = None
    eval_every: _Count | None = None
    probe_steps: _Index | None = None
    head_steps: _Index | None = None
    lr_scale: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    runs: _Count = 20
    trials: _Count = 1
    aux_runs: _Count = 4
    seed: _Index = 0
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    workers: Annotated[int, Meta(ge=1, le=1024)] | None = None
    retries: Annotated[int, Meta(ge=0, le=1000)] = 1
    ray: _Text | None = None
    snapshot_seconds: Annotated[float, Meta(ge=0, le=1e6)] = 60.0
    fold_batch_norm: Literal["auto", "on", "off"] = "auto"
    cuda_graph: Literal["auto", "off"] = "auto"
    compile: Literal["on", "off"] = "off"


class HParams(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[hparams]`: values for all runs, instead of those drawn by DomainBed's rule.

    Attributes:
        lr: learning rate of Adam; `train.lr_scale` does not multiply it.
        weight_decay: of Adam (an L2 penalty).
        dropout: between features and classifier.
    """

    lr: Annotated[float, Meta(gt=0, le=1)] | None = None
    weight_decay: Annotated[float, Meta(ge=0, le=1)] | None = None
    dropout: Annotated[float, Meta(ge=0, lt=1)] | None = None


class Output(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[output]`: the results.

    Attributes:
        dir: the folder to write to, and to continue from.
        store: URL of a folder where all of it is kept too, and from which any machine goes on, as `fsspec` has it:
            "s3://bucket/folder", "gs://", "abfs://", "hdfs://", "sftp://", "file:///folder" and others. Weights that
            no task on this machine has needed stay there alone.
    """

    dir: _Text = "ratfast-output"
    store: Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://\S")] | None = None


class Recipe(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe; the sections' own pages say what each key means."""

    data: Data = Data()
    model: Model = Model()
    protocol: Protocol = Protocol()
    train: Train = Train()
    hparams: HParams = HParams()
    output: Output = Output()

    def __post_init__(self) -> None:
        """Checks what no key can say alone.

        Raises:
            InputError: keys contradict each other or name what does not exist.
        """
        try:
            registry.find(self.model.backbone)
        except InputError as error:
            raise InputError(f"model.backbone: {error}") from None
        repeated = {name for name in self.data.aux if self.data.aux.count(name) > 1}
        if repeated:
            raise InputError(f"data.aux names {min(repeated)!r} twice, expected each data set once")
        if self.data.target is not None and self.data.target in self.data.aux:
            raise InputError(
                f"data.aux names the target {self.data.target!r}, expected other data sets: "
                "auxiliary trainings see every domain, the held-out one too"
            )
        steps = self.train.steps
        if steps is not None and self.train.probe_steps is not None and self.train.probe_steps >= steps:
            raise InputError(
                f"train.probe_steps is {self.train.probe_steps}, expected fewer than train.steps "
                f"({steps}), of which they are part"
            )

    @property
    def folds_batch_norm(self) -> bool:
        """Whether trainings fold: `train.fold_batch_norm`, settled."""
        if self.train.fold_batch_norm == "auto":
            return self.protocol.name != "official"
        return self.train.fold_batch_norm == "on"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and key, in this module's order, without what is unset."""
        sections = msgspec.to_builtins(self)
        return {
            section: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in keys.items()
                if value is not None
            }
            for section, keys in sections.items()
        }

    def to_toml(self) -> str:
        """The recipe as a TOML file that `ratfast.config.load` reads back; equal recipes give equal text."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())


def demo_recipe(data_dir: str | PathLike[str]) -> Recipe:
    """The demonstration: real handwritten digits, minutes on a CPU.

    Args:
        data_dir: where `ratfast.data.demo.prepare` wrote its image folders.
    """
    return Recipe(
        data=Data(
            dir=str(data_dir),
            target="Digits",
            test_env="photograph",
            aux=("RotatedMNIST", "ColoredMNIST"),
            image_size=64,
        ),
        model=Model(backbone="efficientnet_lite0"),
        # A fiftieth of the paper's updates at four times its learning rates: enough to see the method work.
        train=Train(batch_size=12, steps=100, head_steps=50, eval_every=50, lr_scale=4.0, runs=6, aux_runs=1),
    )
