"""``whimbrel mover-image``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from whimbrel.cli.exit_code import ExitCode
from whimbrel.cli.fault import Fault
from whimbrel.cli.option import Json
from whimbrel.cli.output import emit, note
from whimbrel.moverimage import upload
from whimbrel.moverimage.contents import of_this_machine

NAME = "mover-image"

File = Annotated[Path, typer.Argument(metavar="FILE", help="Raw image to write, 64 MiB.", show_default=False)]
NicOptions = Annotated[
    str, typer.Option("--nic-options", help="Parameters of virtio_net, such as 'csum=0 gso=0'.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def command(file: File, nic_options: NicOptions = "", force: Force = False, as_json: Json = False) -> None:
    """Write the image of mover servers, from Debian packages of this machine, and print how it is uploaded."""
    if file.exists() and not force:
        raise Fault(ExitCode.INVALID, "Exists", f"{file} exists", "choose another FILE, or --force to replace it")
    image = of_this_machine(nic_options)
    try:
        image.write(file)
        with file.open("rb") as written:
            summed = hashlib.file_digest(written, "sha256").hexdigest()
    except OSError as error:
        raise Fault(
            ExitCode.INVALID, "Unwritable", f"{file} cannot be written: {error.strerror}", "choose another FILE"
        ) from error
    packages = image.packages()
    lines = upload.command(file)
    result = {
        "file": str(file),
        "sha256": summed,
        "packages": packages,
        "properties": upload.PROPERTIES,
        "upload": " ".join(line.removesuffix(" \\").strip() for line in lines),
    }
    emit(NAME, result, as_json=as_json)
    if not as_json:
        note(f"{file}: sha256 {summed}, made of {', '.join(f'{one.name} {one.version}' for one in packages)}")
        sys.stdout.write("".join(f"{line}\n" for line in lines))  # never wrapped: it is there to be typed
