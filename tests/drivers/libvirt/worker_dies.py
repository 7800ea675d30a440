"""A worker that opens something and dies by SIGKILL: run as ``python worker_dies.py URI RUNTIME_DIR WHAT...``."""

from __future__ import annotations

import json
import os
import signal
import sys

from drivers.libvirt import LibvirtCloud
from whimbrel.model.vm import TargetDisk, VolumeRef


def main(uri: str, runtime_dir: str, what: str, argument: str) -> None:
    """Open a point or a writer, or switch disks up to a stage, as ``argument`` (JSON) says, print it, die."""
    cloud = LibvirtCloud("lab", uri=uri, runtime_dir=runtime_dir)
    asked = json.loads(argument)
    if what == "point":
        print(cloud.points.open(**asked).model_dump_json(), flush=True)  # noqa: T201
    elif what == "switch":
        stage, disks = asked.pop("stage"), [TargetDisk.model_validate(disk) for disk in asked.pop("disks")]
        cloud.serving.at = lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == stage else None
        cloud.serving.switch_disks(disks=disks, **asked)
        raise SystemExit(f"stage {stage} was never reached")
    else:
        volumes = {key: VolumeRef(**volume) for key, volume in asked.pop("volumes").items()}
        print(cloud.volumes.open_writer(volumes=volumes, **asked).model_dump_json(), flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
