"""`ratfast convert`: a checkpoint in another format. Imports torch only to write its format."""

from __future__ import annotations

from pathlib import Path

import click

from ratfast.checkpoints import atomic_file, open_checkpoint
from ratfast.checkpoints.conversion import write_checkpoint
from ratfast.cli.context import CONTEXT
from ratfast.dtypes import BY_NAME
from ratfast.errors import InputError

_TORCH_SUFFIXES = (".pt", ".pth", ".bin")


@click.command(context_settings=CONTEXT)
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("output", metavar="OUT", type=click.Path())
@click.option("--key", help="Which entry of IN is the state dict, such as state_dict_ema.  [default: found]")
@click.option(
    "--dtype",
    type=click.Choice([dtype.name for dtype in BY_NAME.values() if dtype.is_floating]),
    help="Type of the floating tensors in OUT.  [default: their own]",
)
def convert(source: str, output: str, key: str | None, dtype: str | None) -> None:
    """Write the checkpoint IN in the format that the suffix of OUT names; OUT may be IN.

    IN is a safetensors file, one of torch.save (.pt, .pth, .pth.tar, .bin, .pkl), of which nothing is run, or the
    index of a checkpoint in shards (*.index.json). OUT is a .safetensors file, or with .pt, .pth or .bin a plain
    state dict of torch.save. It appears under its name once it is complete.
    """
    name = Path(output).name.lower()
    if name.endswith(_TORCH_SUFFIXES):
        tensors, nbytes, left_out = _to_torch(source, output, key, dtype)
    elif name.endswith(".safetensors"):
        checkpoint = open_checkpoint(source, key=key)
        layout = write_checkpoint(checkpoint, output, dtype=dtype)
        tensors, nbytes, left_out = len(layout), layout.nbytes, list(checkpoint.left_out)
    else:
        known = ", ".join((".safetensors", *_TORCH_SUFFIXES))
        raise InputError(
            f"{output} names no format that is written, expected a name that ends in one of {known}"
        )
    click.echo(f"wrote {output}: {tensors} tensors, {nbytes / 1e6:.1f} MB")
    if left_out:
        click.echo(
            f"ratfast: left out, as they are no part of the state dict: {', '.join(left_out)}", err=True
        )


def _to_torch(source: str, output: str, key: str | None, dtype: str | None) -> tuple[int, int, list[str]]:
    """Writes a plain state dict; returns its number of tensors, their bytes, and what else the input held."""
    import torch

    from ratfast.checkpoints.tensors import load_checkpoint

    checkpoint = open_checkpoint(source, key=key, writable=True)
    distinct = load_checkpoint(checkpoint, mapped=True)
    for name in checkpoint.layout.names:
        if dtype is not None and distinct[name].is_floating_point():
            distinct[name] = distinct[name].to(getattr(torch, dtype))
    state = {name: distinct[checkpoint.aliases.get(name, name)] for name in checkpoint.names}
    with atomic_file(output) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # what torch raises over it says nothing of the disk
                raise error.__context__ from None
            raise
    nbytes = sum(distinct[name].nbytes for name in checkpoint.layout.names)
    return len(checkpoint.layout), nbytes, [*checkpoint.metadata, *checkpoint.left_out]
