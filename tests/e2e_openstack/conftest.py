"""One installation per session on both OpenStack clouds and two KVM clouds; one guest per test.

In a session whose OpenStack tests are all ``small`` there is one OpenStack cloud, which is source and target.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labs.kvm import KvmLab
from labs.openstack import OpenStackLab
from labs.openstack_stage import OpenStackStage
from tests.e2e.installation import Installation, installed, short_name
from tests.e2e_openstack.scene import Scene, SceneMaker, Site


@pytest.fixture(scope="session")
def installation(
    request: pytest.FixtureRequest, kvm_lab: KvmLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Temporal dev server and a worker process on the shared labs."""
    tests = [item for item in request.session.items if item.get_closest_marker("openstack")]
    one_cloud = all(item.get_closest_marker("small") for item in tests)
    lab: OpenStackLab = request.getfixturevalue("openstack_lab" if one_cloud else "openstack_clouds")
    with installed(OpenStackStage.on(tmp_path_factory.mktemp("stage"), lab, kvm_lab)) as made:
        yield made


@pytest.fixture
def new_scene(installation: Installation, request: pytest.FixtureRequest) -> Iterator[SceneMaker]:
    """Makes scenes: guests that are not there yet; everything runs, whatever the test before has killed."""
    installation.make_whole()
    made: list[Scene] = []

    def make(source: Site | None = None, target: Site | None = None) -> Scene:
        scene = Scene(installation, short_name(request), source=source, target=target)
        made.append(scene)
        return scene

    yield make
    for scene in made:
        scene.close()


@pytest.fixture
def scene(new_scene: SceneMaker) -> Scene:
    """A guest of OpenStack cloud a that is to go to OpenStack cloud b."""
    return new_scene()
