"""One connection to an OpenStack cloud by its name in clouds.yaml; every use of it has a name and translated errors."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openstack
import requests
from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk
from openstack.warnings import OpenStackDeprecationWarning

from drivers.openstack.errors import translate
from drivers.openstack.pace import Pace, PacedAdapter
from drivers.openstack.together import Together
from whimbrel.errors import NotReady

API_TIMEOUT_S = 60
CONNECT_RETRIES = 0
"""Temporal tries again, visibly; a call that tries by itself only hides that."""
POLL_S = 0.25
ASK_AGAIN_S = 0.5
"""After a wait that was given up: the backoff between attempts would add to an outage what nothing is waiting for."""
T = TypeVar("T")

# The SDK warns about itself at every call; what is deprecated is found when its version is raised.
warnings.filterwarnings("ignore", category=OpenStackDeprecationWarning)


class Connection:
    """openstacksdk's connection, made when first used and made anew after ``close``. Thread-safe.

    keystoneauth asks for a new token by itself when one has expired or was revoked. The SDK finds each service's
    microversions and uses for each call the newest that both sides know.
    """

    def __init__(
        self, cloud: str, *, config_file: Path | None = None, region: str | None = None, pace: Pace | None = None
    ) -> None:
        self.cloud = cloud
        self._pace = pace or Pace()
        self._config_file = config_file
        self._region = region
        self._lock = threading.Lock()
        self._made: Any = None
        self._look = threading.local()
        self.together = Together()

    @contextmanager
    def one_look(self) -> Iterator[None]:
        """Inside, this thread looks at each thing once: for questions about one moment, as prechecks ask them."""
        outer = getattr(self._look, "seen", None)
        self._look.seen = {} if outer is None else outer
        try:
            yield
        finally:
            self._look.seen = outer

    def once(self, what: str, look: Callable[[], T]) -> T:
        """What was seen before in this ``one_look``; outside of one a new look each time."""
        seen: dict[str, Any] | None = getattr(self._look, "seen", None)
        if seen is None:
            return look()
        if what not in seen:
            seen[what] = look()
        found: T = seen[what]
        return found

    @contextmanager
    def using(self, what: str) -> Iterator[Any]:
        """The SDK's connection for doing ``what``; its exceptions leave as ours."""
        try:
            yield self._get()
        except (sdk.SDKException, keystone.ClientException, requests.RequestException) as error:
            raise translate(error, what) from error

    def close(self) -> None:
        """Give the connection up; the next use makes another."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()

    def _get(self) -> Any:
        with self._lock:
            if self._made is None:
                files = [str(self._config_file)] if self._config_file is not None else None
                loader = openstack.config.OpenStackConfig(config_files=files, load_envvars=files is None)
                choice: dict[str, Any] = {"cloud": self.cloud, "api_timeout": API_TIMEOUT_S}
                if self._region is not None:
                    choice["region_name"] = self._region
                region = loader.get_one(**choice)
                for service in ("compute", "block_storage", "network", "image", "identity"):
                    region.config[f"{service}_connect_retries"] = CONNECT_RETRIES
                made = openstack.connection.Connection(config=region, app_name="whimbrel")
                for scheme in ("http://", "https://"):
                    made.session.session.mount(scheme, PacedAdapter(self._pace))
                self._made = made
            return self._made


def settled(look: Callable[[], T | None], waiting: str, *, patience_s: float = 4.0, every_s: float | None = None) -> T:
    """The answer of ``look`` once it is not None; a short wait saves a retry, a longer one is Temporal's.

    Raises NotReady (``waiting`` says for what) after ``patience_s``, and what ``look`` raises.
    """
    deadline = time.monotonic() + patience_s
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            raise NotReady(waiting, retry_after_s=ASK_AGAIN_S)
        time.sleep(POLL_S if every_s is None else every_s)
