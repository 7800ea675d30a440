"""A volume whose image was taken: the record stays in Cinder, and the name that it would be opened by leads nowhere.

Two marks say so. The one in the volume's metadata leads from the record to the image; the one on the image (its RBD
metadata) is what the other cloud adopts by, and holds all that it has to know of the volume. The first is written
before the image is renamed, and is the last to go.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field

from drivers.openstack.backing import SharedImage
from whimbrel.model.endpoint import Frozen

HELD = "whimbrel_held"
"""On a volume: who has taken its image."""
DEPOSIT = "held"
"""On an image: what the volume was that it was taken from."""
AWAY = "whimbrel-held-"
BACK = "whimbrel-back-"
OF_THE_IMAGE = {"image_id", "checksum", "container_format", "disk_format", "size", "signature_verified", "stores"}
"""Image metadata of a volume that tells of an image in the Glance of its own cloud."""


class Taken(Frozen):
    """The mark on a volume; less than 255 characters as JSON."""

    migration: str
    turn: int
    image: str
    """Lasting id of the image."""
    vm: str
    """Ref of the VM that it was taken from."""
    disk: str


class Deposit(Frozen):
    """The mark on an image."""

    migration: str
    turn: int
    vm: str
    vm_name: str
    disk: str
    volume: str
    """Id of the volume that it was taken from."""
    volume_type: str
    size_gib: int
    name: str = ""
    description: str = ""
    bootable: bool = False
    metadata: dict[str, str] = Field(default_factory=dict)
    image_metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def held_name(self) -> str:
        """What the image is called while it waits for the other cloud."""
        return held_name(self.volume, self.turn)

    @property
    def back_name(self) -> str:
        """What it is called when the other cloud may have it no more, until its own has it again."""
        return f"{BACK}{self.volume}-{self.turn}"


def held_name(volume: str, turn: int) -> str:
    """A name that no Cinder looks for. With the turn: a request to manage the image comes too late after its turn."""
    return f"{AWAY}{volume}-{turn}"


def is_away(name: str, volume: str) -> bool:
    """Whether an image of this name was taken from the volume, and no other cloud has it."""
    return name.startswith((f"{AWAY}{volume}-", f"{BACK}{volume}-"))


def taken(volume: Any) -> Taken | None:
    """Who has taken the volume's image, by its record."""
    text = (volume.metadata or {}).get(HELD)
    return Taken.model_validate_json(text) if text else None


def deposit(image: SharedImage) -> Deposit | None:
    """What the image was taken from."""
    text = image.marks.get(DEPOSIT)
    return Deposit.model_validate_json(text) if text else None


def describe(volume: Any, mark: Taken, vm_name: str) -> Deposit:
    """All that is to be known of a volume elsewhere; our own marks on it are not."""
    metadata = {str(key): str(text) for key, text in (volume.metadata or {}).items()}
    return Deposit(
        migration=mark.migration,
        turn=mark.turn,
        vm=mark.vm,
        vm_name=vm_name,
        disk=mark.disk,
        volume=volume.id,
        volume_type=volume.volume_type,
        size_gib=int(volume.size or 0),
        name=volume.name or "",
        description=volume.description or "",
        bootable=bool(volume.is_bootable),
        metadata={key: text for key, text in metadata.items() if not key.startswith("whimbrel_")},
        image_metadata={
            str(key): str(text) for key, text in (volume.volume_image_metadata or {}).items() if key not in OF_THE_IMAGE
        },
    )


def as_metadata(mark: Taken) -> dict[str, str]:
    """The mark as Cinder keeps it."""
    return {HELD: json.dumps(mark.model_dump(), separators=(",", ":"))}
