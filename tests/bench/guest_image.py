"""A real system's disk for the prefetch benchmark: this machine's Debian in an ext4 image that systemd boots from.

Only files that everybody may read are taken, so no key and no password gets into it. The image has a unit of ours that
runs ``/opt/whb/work.py`` after the boot (see ``guest_work``), and a SQLite database made from a seed. Two images from
different seeds differ in what is on them and where: other trees are left out, other fillers lie between.

With ``--root`` the system is another one, a directory that ``debootstrap`` has filled: for judging on what nothing was
made with. It gets no database.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
TREES: Final = (
    *("usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu", "usr/lib/systemd", "usr/lib/udev", "usr/lib/modules"),
    *("usr/lib/modprobe.d", "usr/lib/sysctl.d", "usr/lib/tmpfiles.d", "usr/lib/sysusers.d", "usr/lib/environment.d"),
    *("usr/lib/python3", "usr/lib/python3.11", "usr/lib/git-core", "usr/lib/locale", "usr/lib/postgresql"),
    *("usr/lib/file", "usr/lib/networkd-dispatcher", "usr/lib/openssh", "usr/lib/dbus-1.0", "usr/lib/sasl2"),
    *("usr/share", "usr/libexec", "etc", "var/lib/dpkg", "var/lib/systemd"),
)
LINKS: Final = {
    **{name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")},
    "usr/lib/ssl": "/etc/ssl",
}
LOADER: Final = "usr/lib64"
EMPTY: Final = (
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "root",
    "mnt",
    "var/tmp",
    "var/log",
    "var/cache",
    "var/spool",
    "home",
)
OPTIONAL: Final = ("usr/share/doc", "usr/share/man", "usr/share/icons", "usr/share/java", "usr/share/locale")
UNIT: Final = """[Unit]
Description=What the benchmark lets the guest do
After=ssh.service postgresql.service systemd-logind.service systemd-user-sessions.service
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/usr/bin/python3 -I /opt/whb/work.py
[Install]
WantedBy=multi-user.target
"""


def build(image: Path, stage: Path, size_bytes: int, seed: int) -> None:
    """Make ``image``; ``stage`` is a directory for the files on their way, removed afterwards."""
    rng = random.Random(seed)
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    left_out = set(rng.sample(OPTIONAL, 2))
    for tree in (*TREES, LOADER):
        _copy(Path("/") / tree, stage / tree, left_out)
    for name, target in LINKS.items():
        (stage / name).unlink(missing_ok=True)
        (stage / name).symlink_to(target)
    for name in EMPTY:
        (stage / name).mkdir(parents=True, exist_ok=True)
    _fill(stage / "home", rng)
    _install(stage)
    database(stage / "opt/whb/orders.db", seed)
    _make(image, stage, size_bytes)
    shutil.rmtree(stage)


def build_from(root: Path, image: Path, size_bytes: int, seed: int) -> None:
    """Make ``image`` of the system in ``root``, to which unit, work and fillers are added."""
    _fill(root / "home", random.Random(seed))
    _install(root)
    _make(image, root, size_bytes)


def _make(image: Path, stage: Path, size_bytes: int) -> None:
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "root", "-d", str(stage), str(image)], check=True)


def _copy(source: Path, target: Path, left_out: set[str]) -> None:
    """Copy what everybody may read."""
    if not source.is_dir():
        return
    for directory, folders, files in os.walk(source):
        here = Path(directory)
        if str(here).lstrip("/") in left_out:
            folders.clear()
            continue
        there = target / here.relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in [*files, *(folder for folder in folders if (here / folder).is_symlink())]:
            kind = (here / name).lstat().st_mode
            if stat.S_ISLNK(kind):
                (there / name).symlink_to((here / name).readlink())
            elif stat.S_ISREG(kind) and kind & stat.S_IROTH:
                shutil.copy2(here / name, there / name)


def _fill(where: Path, rng: random.Random) -> None:
    """Files of users, which no boot reads."""
    for number in range(rng.randrange(60, 160)):
        (where / f"file-{number}").write_bytes(rng.randbytes(rng.randrange(1 << 16, 2 * MIB)))


def _install(stage: Path) -> None:
    (stage / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    (stage / "etc/machine-id").write_text("")
    (stage / "etc/hostname").write_text("prefetch\n")
    (stage / "opt/whb").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("guest_work.py"), stage / "opt/whb/work.py")
    units = stage / "etc/systemd/system"
    (units / "whb.service").write_text(UNIT)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/whb.service").unlink(missing_ok=True)
    (units / "multi-user.target.wants/whb.service").symlink_to("/etc/systemd/system/whb.service")


def _rows(rng: random.Random, count: int) -> Iterator[tuple[int, int, int, float, str]]:
    for number in range(count):
        customer = rng.randrange(40_000)
        yield number, customer, rng.randrange(365 * 5), rng.random() * 900, rng.randbytes(70).hex()


def database(path: Path, seed: int, orders: int = 500_000) -> None:
    """Customers and orders with two indexes: about 130 MiB for 500 000 orders."""
    rng = random.Random(seed)
    base = sqlite3.connect(path)
    base.executescript(
        "PRAGMA page_size=4096; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
        "CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, town TEXT, note TEXT);"
        "CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, day INTEGER, amount REAL, note TEXT);"
    )
    base.executemany(
        "INSERT INTO customer VALUES(?,?,?,?)",
        ((n, rng.randbytes(8).hex(), rng.randbytes(4).hex(), rng.randbytes(60).hex()) for n in range(40_000)),
    )
    base.executemany("INSERT INTO orders VALUES(?,?,?,?,?)", _rows(rng, orders))
    base.executescript("CREATE INDEX by_customer ON orders(customer); CREATE INDEX by_day ON orders(day, amount);")
    base.commit()
    base.execute("PRAGMA journal_mode=DELETE")
    base.close()


def main() -> None:
    """``python -m tests.bench.guest_image IMAGE --seed N``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size-mib", type=int, default=3072)
    parser.add_argument("--root", type=Path, help="another system than this machine's; files are added to it")
    options = parser.parse_args()
    if options.root is not None:
        build_from(options.root, options.image, options.size_mib * MIB, options.seed)
        return
    build(options.image, options.image.with_suffix(".stage"), options.size_mib * MIB, options.seed)


if __name__ == "__main__":
    main()
