"""One installation per session; one guest per test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation
from tests.e2e_handover.scene import Scene


@pytest.fixture(scope="session")
def installation(openstack_clouds: OpenStackLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Temporal dev server and a worker process on the lab."""
    made = Installation(OpenStackStage.on(tmp_path_factory.mktemp("stage"), openstack_clouds, None))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def scene(
    installation: Installation, openstack_clouds: OpenStackLab, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """A guest in the shared pool of cloud a, and its migrations."""
    installation.make_whole()
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")[:24].strip("-")
    made = Scene(installation, openstack_clouds, name)
    try:
        yield made
    finally:
        made.close()
