"""``python -m labs.kvm``: the lab by hand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import libvirt

from labs.kvm.accel import virt_type
from labs.kvm.domain import DiskSpec, GuestSpec
from labs.kvm.errors import LabError
from labs.kvm.lab import DEFAULT_CLOUDS, KvmLab, labs_on_this_machine
from whimbrel.errors import WhimbrelError


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    top = argparse.ArgumentParser(prog="python -m labs.kvm", description="KVM clouds on this machine, to test against")
    top.add_argument("--root", type=Path, help="directory of the lab (default: $WHIMBREL_LAB_ROOT or .state/lab-kvm)")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring clouds up; running it again is fine")
    up.add_argument("--clouds", default=",".join(DEFAULT_CLOUDS), help="comma separated names (default: %(default)s)")
    down = commands.add_parser("down", help="end every process of the lab and remove its files")
    down.add_argument("--keep-data", action="store_true", help="leave the files")
    status = commands.add_parser("status", help="what runs")
    status.add_argument("--json", action="store_true")
    commands.add_parser("list", help="roots of all labs on this machine, for use with --root")
    guest = commands.add_parser("guest", help="guests").add_subparsers(dest="action", required=True)
    for action in ("create", "start", "stop", "destroy", "remove", "console", "records", "hash", "ask"):
        one = guest.add_parser(action)
        one.add_argument("name")
        one.add_argument("--cloud", default="a")
        if action == "create":
            one.add_argument("--size-mib", type=int, default=64)
            one.add_argument("--disks", type=int, default=1)
            one.add_argument("--format", choices=("qcow2", "raw"), default="qcow2")
            one.add_argument("--rate", type=int, default=5, help="records per second")
            one.add_argument("--dirty-kib", type=int, default=0, help="random KiB per second besides")
            one.add_argument("--network", help="libvirt network, for example lab (default: user networking)")
        elif action == "hash":
            one.add_argument("disk", nargs="?", default="vda")
        elif action == "ask":
            one.add_argument("words", nargs="+", help="ping, boot-count, last-record, stop-writing, start-writing, ...")
    return top


def _status(lab: KvmLab, *, as_json: bool) -> int:
    states = lab.status()
    if as_json:
        print(json.dumps(lab.status_json(), indent=2))
    for state in () if as_json else states:
        health = f"healthy, pid {state.pid}" if state.healthy else f"DOWN, see {state.log}"
        print(f"cloud {state.name}: {health}\n  {state.uri}")
        for guest, runs in state.guests.items():
            print(f"  guest {guest}: {'running' if runs else 'off'}")
    if not states and not as_json:
        print("no clouds; bring them up with: python -m labs.kvm up")
    return 0 if states and all(state.healthy for state in states) else 1


def _guest(lab: KvmLab, arguments: argparse.Namespace) -> int:
    guest, cloud = lab.guest(arguments.name), arguments.cloud
    match arguments.action:
        case "create":
            disks = (DiskSpec(arguments.size_mib << 20, arguments.format),) * arguments.disks
            spec = GuestSpec(
                arguments.name,
                disks=disks,
                rate=arguments.rate,
                dirty_kib=arguments.dirty_kib,
                network=arguments.network,
                virt_type=virt_type(),
            )
            lab.create_guest(spec, cloud)
        case "start":
            guest.start(cloud)
        case "stop":
            print(f"powered off after {guest.shutdown(cloud):.1f} s")
        case "destroy":
            guest.destroy(cloud)
        case "remove":
            guest.remove(cloud)
        case "console":
            sys.stdout.write(guest.console_text())
        case "hash":
            print(guest.hash(arguments.disk))
        case "ask":
            print(guest.command(" ".join(arguments.words)))
        case "records":
            found = guest.records_on(cloud)
            lost = found.lost(guest.acknowledged())
            print(
                f"boots {found.boots}, records {len(found.records)}, last {found.last}, gaps {len(found.gaps())}, "
                f"damaged {len(found.bad_slots)}, misplaced {len(found.misplaced_slots)}, lost {len(lost)}"
            )
            return 1 if found.bad_slots or found.gaps() or lost else 0
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, or 1 with one line on stderr."""
    arguments = parser().parse_args(argv)
    lab = KvmLab(arguments.root)
    try:
        match arguments.command:
            case "up":
                lab.up([name for name in arguments.clouds.split(",") if name])
            case "down":
                lab.down(keep_data=arguments.keep_data)
            case "list":
                sys.stdout.writelines(f"{root}\n" for root in labs_on_this_machine())
            case "status":
                return _status(lab, as_json=arguments.json)
            case _:
                return _guest(lab, arguments)
    except (LabError, WhimbrelError, libvirt.libvirtError) as error:
        print(f"labs.kvm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
