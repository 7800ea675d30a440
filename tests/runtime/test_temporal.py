"""Connecting, the development server, search attributes and settings, against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from labs.ports import lend_port
from whimbrel.contracts.names import SEARCH_ATTRIBUTES
from whimbrel.errors import NotFound, Unavailable
from whimbrel.runtime.connect import connect
from whimbrel.runtime.devserver import DevServer, temporal_binary
from whimbrel.runtime.search_attributes import ensure_search_attributes
from whimbrel.runtime.settings import WorkerSettings

START_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DevServer]:
    made = DevServer(tmp_path / "temporal", lend_port(), lend_port(), bound=True)
    yield made
    made.stop()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{lend_port()}"
    monkeypatch.setenv("TEMPORAL_ADDRESS", address)
    with pytest.raises(Unavailable) as refused:
        asyncio.run(connect())
    assert address in str(refused.value)
    assert "TEMPORAL_ADDRESS" in refused.value.action


def test_the_standard_configuration_is_honoured(
    server: DevServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Address and namespace of the environment, and those of a profile in a configuration file."""
    server.start()

    async def story() -> list[str]:
        await server.ready(START_S)
        monkeypatch.setenv("TEMPORAL_ADDRESS", server.address)
        monkeypatch.setenv("TEMPORAL_NAMESPACE", "other")
        by_environment = (await connect(lazy=True)).namespace
        monkeypatch.delenv("TEMPORAL_ADDRESS")
        monkeypatch.delenv("TEMPORAL_NAMESPACE")
        file = tmp_path / "temporal.toml"
        file.write_text(f'[profile.lab]\naddress = "{server.address}"\nnamespace = "default"\n')
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))
        monkeypatch.setenv("TEMPORAL_PROFILE", "lab")
        client = await connect()
        assert await client.service_client.check_health()
        return [by_environment, client.namespace]

    assert asyncio.run(story()) == ["other", "default"]


def test_killed_and_started_again_it_knows_its_workflows(server: DevServer) -> None:
    """``kill`` is a crash; the same directory is the same server."""

    async def story() -> str:
        server.start()
        client = await server.ready(START_S)
        await client.start_workflow("Waits", id="kept", task_queue="nobody")
        server.kill()
        assert server.process is not None
        assert server.process.poll() is not None
        server.start()
        client = await server.ready(START_S)
        described = await client.get_workflow_handle("kept").describe()
        return described.workflow_type

    assert asyncio.run(story()) == "Waits"


def test_stopping_twice_is_fine(server: DevServer) -> None:
    server.stop()
    server.start()
    server.stop()
    server.stop()
    server.kill()


def test_a_server_that_cannot_start_names_its_log(server: DevServer) -> None:
    server.directory.mkdir(parents=True)
    (server.directory / "temporal.db").mkdir()
    server.start()
    with pytest.raises(Unavailable) as refused:
        asyncio.run(_ready(server))
    assert "temporal.log" in refused.value.action


async def _ready(server: DevServer) -> Client:
    return await server.ready(START_S)


def test_no_binary_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(NotFound):
        temporal_binary()


def test_search_attributes_are_registered_once_and_again() -> None:
    async def story() -> set[str]:
        async with await WorkflowEnvironment.start_local(
            port=lend_port(), dev_server_existing_path=temporal_binary(), dev_server_log_level="error"
        ) as plain:
            await asyncio.gather(*(ensure_search_attributes(plain.client) for _ in range(3)))
            await ensure_search_attributes(plain.client)
            known = await plain.client.operator_service.list_search_attributes(
                ListSearchAttributesRequest(namespace="default")
            )
            return set(known.custom_attributes)

    assert asyncio.run(story()) >= set(SEARCH_ATTRIBUTES)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHIMBREL_SITE", "north")
    monkeypatch.setenv("WHIMBREL_QUEUES", "data")
    monkeypatch.setenv("WHIMBREL_MAX_COPIES", "3")
    monkeypatch.setenv("WHIMBREL_STATE_DIR", "/var/lib/mover")
    monkeypatch.setenv("WHIMBREL_HOST_BANDWIDTH", "1e9")
    read = WorkerSettings()
    assert (read.site, read.queues, read.max_copies, read.state_dir, read.host_bandwidth) == (
        "north", "data", 3, Path("/var/lib/mover"), 1e9,
    )  # fmt: skip
    monkeypatch.setenv("WHIMBREL_MAX_COPIES", "0")
    with pytest.raises(ValueError, match="max_copies"):
        WorkerSettings()
