"""One installation per session; one guest per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.openstack import OpenStackLab
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation, installed, short_name
from tests.e2e_handover.scene import Scene


@pytest.fixture(scope="session")
def installation(openstack_clouds: OpenStackLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Temporal dev server and a worker process on the lab."""
    with installed(OpenStackStage.on(tmp_path_factory.mktemp("stage"), openstack_clouds, None)) as made:
        yield made


@pytest.fixture
def scene(
    installation: Installation, openstack_clouds: OpenStackLab, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    """A guest in the shared pool of cloud a, and its migrations."""
    installation.make_whole()
    made = Scene(installation, openstack_clouds, short_name(request, most=24))
    try:
        yield made
    finally:
        made.close()
