"""`ratfast evaluate`: the accuracy of a checkpoint on a folder of domains."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ratfast import catalogue
from ratfast.cli.context import CONTEXT


@click.command(context_settings=CONTEXT)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--data-dir", required=True, type=click.Path(path_type=Path), help="Folder that holds the data sets."
)
@click.option("--dataset", required=True, help="Name of the data set, or of its folder below it.")
@click.option("--domain", help="Only this domain, by index or folder name; all by default.")
@click.option("--backbone", help="Network, for a checkpoint that does not say.")
@click.option("--image-size", type=click.IntRange(min=1), help="Pixels, for a checkpoint that does not say.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Stop at an image that cannot be read, or leave it out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def evaluate(
    checkpoint: Path,
    data_dir: Path,
    dataset: str,
    domain: str | None,
    backbone: str | None,
    image_size: int | None,
    device: str,
    precision: str,
    on_bad_image: str,
    as_json: bool,
) -> None:
    """Print the accuracy of CHECKPOINT on every image of a data set's domains."""
    from ratfast.train.checkpoint_accuracy import checkpoint_accuracy

    result = checkpoint_accuracy(
        checkpoint,
        catalogue.find_folder(data_dir, dataset),
        domain=domain,
        backbone=backbone,
        image_size=image_size,
        device=device,
        precision=precision,
        on_bad_image=on_bad_image,
    )
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(len(name) for name in result["domains"])
    for name, record in result["domains"].items():
        click.echo(f"{name:<{width}}  {record['accuracy']:.4f}  ({record['images']} images)")
    if result.get("left_out"):
        path, defect = next(iter(result["left_out"].items()))
        click.echo(
            f"ratfast: left out {len(result['left_out'])} images, the first {path}, which {defect}", err=True
        )
