"""Names of the objects that a migration makes: derived, so that every retry finds what an earlier attempt made."""

from __future__ import annotations

import hashlib
import re

PREFIX = "whimbrel"


def migration_id(workflow_id: str, first_run_id: str) -> str:
    """Ten hex digits that name one migration, the same through every retry and continue-as-new."""
    return hashlib.blake2s(f"{workflow_id}\n{first_run_id}".encode(), digest_size=5).hexdigest()


def workflow_id(plan: str, vm: str) -> str:
    """Id of the workflow that moves one VM of a plan: a VM cannot be moved twice at once by the same plan."""
    return f"vm/{plan}/{vm}"


def drill_id(plan: str, vm: str) -> str:
    """Id of the workflow that rehearses the move of one VM of a plan."""
    return f"drill/{plan}/{vm}"


def volume_name(vm: str, disk: str, migration: str) -> str:
    """Name of the target volume for a disk; characters that a storage may refuse become dashes."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', vm)}-{disk}-{migration}"


def point_key(migration: str, serial: int) -> str:
    """Key of the migration's n-th point in time; also the name of the checkpoint that it leaves."""
    return f"{PREFIX}-{migration}-{serial:04d}"


def owns_point(key: str, migration: str) -> bool:
    """Whether a checkpoint or point of this name belongs to the migration."""
    return key.startswith(f"{PREFIX}-{migration}-")


def writer_key(migration: str) -> str:
    """Key of the session that writes the target volumes."""
    return f"{PREFIX}-{migration}-writer"


def frozen_key(migration: str, drill: str) -> str:
    """Key of the state of the migration's target copy that it lends to a drill."""
    return f"{PREFIX}-{migration}-frozen-{drill}"


def reader_key(migration: str) -> str:
    """Key of the session that reads a stopped VM's disks."""
    return f"{PREFIX}-{migration}-reader"


def shadow_key(migration: str) -> str:
    """Key of the session that keeps the target's writes at the source."""
    return f"{PREFIX}-{migration}-shadow"


def marker_name(migration: str) -> str:
    """Name of the note by which two clouds find that they see one storage; ends like a volume of the migration."""
    return f"{PREFIX}-marker-{migration}"
