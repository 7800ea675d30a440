"""``python -m labs.openstack``: the lab by hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from labs.kvm.errors import LabError
from labs.openstack.lab import OpenStackLab
from labs.openstack.layout import CLOUDS
from whimbrel.errors import WhimbrelError


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(prog="python -m labs.openstack", description="OpenStack clouds on this machine")
    top.add_argument(
        "--root", type=Path, help="directory of the lab (default: $WHIMBREL_OPENSTACK_ROOT or .state/lab-openstack)"
    )
    top.add_argument("--clouds", default=",".join(CLOUDS), help="comma separated (default: %(default)s)")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring the clouds up; running it again is fine")
    commands.add_parser("up-ceph", help="bring Ceph up alone")
    down = commands.add_parser("down", help="end every process of the lab and remove its files")
    down.add_argument("--keep-data", action="store_true", help="leave the files: the next up goes on with them")
    commands.add_parser("status", help="what runs; exit 1 if something does not")
    for action in ("start", "stop", "kill", "restart"):
        commands.add_parser(action, help=f"{action} one service").add_argument("service", help="as status names it")
    return top


def _status(lab: OpenStackLab) -> int:
    states = lab.status()
    for state in states:
        health = "healthy" if state.healthy else f"DOWN, see {state.log}"
        print(f"{state.name:32} pid {state.pid or '-':<8} {state.memory_mib:5} MiB  {health}")
    up = all(state.healthy for state in states)
    print(f"{sum(state.memory_mib for state in states)} MiB in all")
    if up:
        print(f"export OS_CLIENT_CONFIG_FILE={lab.clouds_yaml}  # clouds: a, a-tenant-admin, a-member, ...")
    else:
        print("bring the lab up with: make lab-openstack")
    return 0 if up else 1


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, or 1 with one line on stderr."""
    arguments = parser().parse_args(argv)
    try:
        clouds = [name for name in arguments.clouds.split(",") if name]
        lab = OpenStackLab(arguments.root, clouds, say=lambda message: print(message, flush=True))
        match arguments.command:
            case "up":
                lab.up()
            case "up-ceph":
                lab.up_ceph()
            case "down":
                lab.down(keep_data=arguments.keep_data)
            case "status":
                return _status(lab)
            case action:
                getattr(lab, action)(arguments.service)
    except (LabError, WhimbrelError) as error:
        print(f"labs.openstack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
