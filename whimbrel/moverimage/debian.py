"""What an image is made of, as this machine has it: a kernel with its modules, programs with their libraries.

All of it comes from Debian packages; which ones, in which versions, is told with the image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from whimbrel.errors import PreconditionFailed
from whimbrel.model.endpoint import Frozen

BUSYBOX = Path("/bin/busybox")
LOADER = Path("/lib64/ld-linux-x86-64.so.2")
BOOT = Path("/boot")
KERNEL_PACKAGE = "linux-image-cloud-amd64"


class Package(Frozen):
    """An installed Debian package."""

    name: str
    version: str


def lacking(what: Iterable[str], packages: Iterable[str]) -> PreconditionFailed:
    """Return the error for things that this machine has not, with the command that brings them."""
    return PreconditionFailed(
        f"this machine lacks {', '.join(what)}",
        action=f"on Debian 12: apt-get install --no-install-recommends {' '.join(packages)}",
    )


def newest_kernel() -> Path:
    """Return the newest Debian cloud kernel in /boot that has its modules. Raises PreconditionFailed: there is none."""
    found = [path for path in BOOT.glob("vmlinuz-*-cloud-amd64") if modules_of(path).is_dir()]
    if not found:
        raise lacking([f"a Debian cloud kernel with its modules in {BOOT}"], [KERNEL_PACKAGE])
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def modules_of(kernel: Path) -> Path:
    """Return the module directory of ``kernel``."""
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


def load_order(modules: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of ``names`` and all they depend on, in loading order (from modules.dep)."""
    depends: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        target, _, rest = line.partition(":")
        depends[target] = rest.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in depends}
    order: list[str] = []
    for name in names:
        if name not in by_name:
            continue  # built into this kernel
        path = by_name[name]
        order += [entry for entry in (*reversed(depends[path]), path) if entry not in order]
    compressed = [entry for entry in order if not entry.endswith(".ko")]
    if compressed:
        raise PreconditionFailed(
            f"compressed kernel modules are not supported: {compressed[0]}",
            action="build the image on Debian 12, whose modules are not compressed",
        )
    return [modules / entry for entry in order]


def static_busybox() -> bytes:
    """Return the program. Raises PreconditionFailed when it is missing, or needs libraries."""
    if not BUSYBOX.exists():
        raise lacking([str(BUSYBOX)], ["busybox-static"])
    busybox = BUSYBOX.read_bytes()
    if b"/ld-linux" in busybox:
        raise lacking([f"a static {BUSYBOX} (this one needs libraries)"], ["busybox-static"])
    return busybox


def environment() -> dict[str, str]:
    """Return this process's environment, with the directories that only root has in its PATH."""
    return os.environ | {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


def program(name: str, package: str) -> Path:
    """Return where a program is. Raises PreconditionFailed."""
    where = shutil.which(name, path=environment()["PATH"])
    if where is None:
        raise lacking([name], [package])
    return Path(where)


def libraries(of: Path) -> list[Path]:
    """Return the loader and a program's shared libraries, by the paths at which the loader looks for them."""
    done = subprocess.run(["ldd", str(of)], capture_output=True, text=True, check=False)
    if done.returncode or "not found" in done.stdout:
        raise PreconditionFailed(
            f"the libraries of {of} are not all there: {(done.stderr or done.stdout).strip()}",
            action=f"install the Debian package of {of} again",
        )
    return [LOADER, *(Path(path) for path in re.findall(r"=> (/\S+)", done.stdout))]


def packages_of(files: Iterable[Path]) -> list[Package]:
    """Return the installed packages that these files are of, by name; files of no package are left out."""
    asked = {form for file in files for form in _forms(file)}
    owners = _dpkg("-S", *sorted(asked))
    names = {line.partition(": ")[0] for line in owners if ": " in line and not line.startswith("diversion ")}
    if not names:
        return []
    listed = _dpkg("-W", "-f", "${Package} ${Version}\n", *sorted(names))
    return [Package(name=name, version=version) for name, version in sorted({tuple(line.split()) for line in listed})]


def _forms(file: Path) -> set[str]:
    """The path, and the same in /usr or out of it: dpkg knows a file by the one that its package had it under."""
    text = str(file)
    return {text, f"/usr{text}", text.removeprefix("/usr")}


def _dpkg(*words: str) -> list[str]:
    """Lines of its answer; it fails for every path of no package, which is fine."""
    query = program("dpkg-query", "dpkg")
    done = subprocess.run([str(query), *words], capture_output=True, text=True, check=False, env=environment())
    return done.stdout.splitlines()
