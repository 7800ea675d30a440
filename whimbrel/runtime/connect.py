"""Connecting to Temporal by its standard environment configuration.

``TEMPORAL_ADDRESS``, ``TEMPORAL_NAMESPACE``, ``TEMPORAL_API_KEY``, ``TEMPORAL_TLS_*``, ``TEMPORAL_PROFILE`` and
``TEMPORAL_CONFIG_FILE`` are understood as the SDK documents them; without any, 127.0.0.1:7233.
"""

from __future__ import annotations

from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.envconfig import ClientConfig
from temporalio.runtime import Runtime
from temporalio.service import RPCError

from whimbrel.errors import Unavailable

DEFAULT_ADDRESS = "127.0.0.1:7233"
DATA_CONVERTER = pydantic_data_converter


async def connect(*, runtime: Runtime | None = None, lazy: bool = False) -> Client:
    """A client for the configured server and namespace. Raises Unavailable when nobody answers there."""
    options: dict[str, Any] = dict(ClientConfig.load_client_connect_config())
    options.setdefault("target_host", DEFAULT_ADDRESS)
    address = options.pop("target_host")
    if runtime is not None:
        options["runtime"] = runtime
    try:
        return await Client.connect(address, data_converter=DATA_CONVERTER, lazy=lazy, **options)
    except (RPCError, RuntimeError, OSError) as error:
        raise Unavailable(
            f"no Temporal server answers at {address}",
            action="start one (whimbrel dev-server, or make demo) or set TEMPORAL_ADDRESS",
            cause=error,
        ) from error
