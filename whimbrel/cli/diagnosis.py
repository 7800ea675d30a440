"""The checks of ``whimbrel doctor``: each says what was found and, where it is not right, what to do."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal

from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from whimbrel.cli.fault import Fault, explain
from whimbrel.cli.plan import inventory
from whimbrel.cli.plan_input import read_config
from whimbrel.cli.session import RPC_TIMEOUT, converse, pollers
from whimbrel.cli.version import version_of
from whimbrel.config.clouds import LibvirtCloud, WhimbrelConfig, find
from whimbrel.config.credentials import resolve
from whimbrel.config.problem import InvalidFile
from whimbrel.contracts import names
from whimbrel.errors import AuthFailed, NotFound
from whimbrel.model.endpoint import Frozen
from whimbrel.runtime.devserver import temporal_binary

PACKAGES = ("temporalio", "pydantic", "typer", "rich", "pyyaml", "xxhash", "structlog", "keyring")
TLS_FILES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
CLOUD_TIMEOUT = timedelta(seconds=45)
START_WORKER = "start one: whimbrel-worker (python worker.py)"


class Check(Frozen):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail", "skipped"]
    found: str
    action: str = ""


def check_machine() -> tuple[list[Check], WhimbrelConfig | None]:
    """Python, packages, programs, ``whimbrel.yaml`` and what it refers to; and the configuration, if it is good."""
    checks = [_python(), *_packages(), _binary()]
    try:
        config = read_config()
    except InvalidFile as error:
        return [
            *checks,
            *(Check(name="whimbrel.yaml", state="fail", found=str(p), action=error.action) for p in error.problems),
        ], None
    if config is None:
        action = "write one (docs/whimbrel-yaml.md); a machine that only runs the command line can do without"
        return [
            *checks,
            Check(name="whimbrel.yaml", state="warn", found="none in the usual places", action=action),
        ], None
    checks.append(Check(name="whimbrel.yaml", state="ok", found=f"{find()}: {len(config.clouds)} clouds"))
    for name, cloud in config.clouds.items():
        if isinstance(cloud, LibvirtCloud):
            checks += _libvirt(name, cloud)
    return checks, config


def check_temporal(config: WhimbrelConfig | None) -> list[Check]:
    """The server, our search attributes, the workers, and the clouds as the workers reach them."""

    async def body(client: Client) -> list[Check]:
        checks = [Check(name="temporal", state="ok", found=f"{client.service_client.config.target_host} answers")]
        checks.append(await _guarded("search attributes", lambda: _search_attributes(client)))
        sites = config.sites() if config is not None else ["default"]
        control = await _guarded(f"queue {names.CONTROL_QUEUE}", lambda: _queue(client, names.CONTROL_QUEUE))
        queues = [names.data_queue(site) for site in sites]
        checks += [control, *[await _guarded(f"queue {q}", lambda q=q: _queue(client, q)) for q in queues]]  # type: ignore[misc]
        for name in config.clouds if config is not None else ():
            if control.state != "ok":
                checks.append(Check(name=f"cloud {name}", state="skipped", found="no worker to ask"))
                continue
            checks.append(await _guarded(f"cloud {name}", lambda name=name: _cloud(client, name)))  # type: ignore[misc]
        return checks

    try:
        return converse(body)
    except Exception as error:
        fault = explain(error)
        if fault is None:
            raise
        return [_failed("temporal", fault)]


async def _guarded(name: str, check: Callable[[], Awaitable[Check]]) -> Check:
    try:
        return await check()
    except Exception as error:
        fault = explain(error)
        if fault is None:
            raise
        return _failed(name, fault)


def _failed(name: str, fault: Fault) -> Check:
    return Check(name=name, state="fail", found=fault.message, action=fault.action)


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        name="python", state="ok" if good else "fail", found=platform.python_version(),
        action="" if good else "install Python 3.11 or newer",
    )  # fmt: skip


def _packages() -> list[Check]:
    missing = [name for name in PACKAGES if version_of(name) is None]
    found = f"temporalio {version_of('temporalio')}" if not missing else f"missing: {', '.join(missing)}"
    return [
        Check(
            name="packages", state="fail" if missing else "ok", found=found, action="run make setup" if missing else ""
        )
    ]


def _binary() -> Check:
    try:
        return Check(name="temporal program", state="ok", found=temporal_binary())
    except NotFound as error:
        return Check(name="temporal program", state="warn", found=error.message, action=error.action)


def _libvirt(name: str, cloud: LibvirtCloud) -> list[Check]:
    """What this machine needs if it is the worker; another one may be, so nothing here is more than a warning."""
    checks = []
    where = f"cloud {name}, on this machine"
    if importlib.util.find_spec("libvirt") is None:
        action = "install the extra: pip install 'whimbrel[kvm]' (needs libvirt-dev and a C compiler)"
        checks.append(Check(name=where, state="warn", found="libvirt-python is missing", action=action))
    if cloud.tls_dir is not None:
        absent = [file for file in TLS_FILES if not (Path(cloud.tls_dir) / file).is_file()]
        if absent:
            found = f"{cloud.tls_dir} lacks {', '.join(absent)}"
            checks.append(Check(name=where, state="warn", found=found, action="put the client's certificates there"))
    if cloud.credential is not None:
        try:
            resolve(cloud.credential)
        except AuthFailed as error:
            checks.append(Check(name=where, state="warn", found=error.message, action=error.action))
    return checks or [Check(name=where, state="ok", found="libvirt-python and files are there")]


async def _search_attributes(client: Client) -> Check:
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace), timeout=RPC_TIMEOUT
    )
    missing = [name for name in names.SEARCH_ATTRIBUTES if name not in known.custom_attributes]
    if missing:
        return Check(
            name="search attributes", state="fail", found=f"not registered: {', '.join(missing)}",
            action="start a worker: it registers them",
        )  # fmt: skip
    return Check(name="search attributes", state="ok", found=f"{len(names.SEARCH_ATTRIBUTES)} registered")


async def _queue(client: Client, queue: str) -> Check:
    workers = await pollers(client, queue)
    if not workers:
        return Check(name=f"queue {queue}", state="fail", found="no worker polls it", action=START_WORKER)
    return Check(name=f"queue {queue}", state="ok", found=", ".join(workers))


async def _cloud(client: Client, name: str) -> Check:
    async with asyncio.timeout(CLOUD_TIMEOUT.total_seconds() + 5):
        page = await inventory(client, name, limit=1, give_up=CLOUD_TIMEOUT)
    found = f"answers; {len(page.pools)} pools, {len(page.networks)} networks"
    return Check(name=f"cloud {name}", state="ok", found=found)
