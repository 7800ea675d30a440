"""OpenStack's answers, and silence, become the taxonomy's errors."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from keystoneauth1 import exceptions as keystone
from openstack import exceptions as sdk
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2.server import Server
from openstack.test import fakes

from drivers.openstack.connection import Connection, settled
from drivers.openstack.errors import pause_s, server_fault, translate, volume_failed
from whimbrel.errors import (
    AuthFailed,
    Conflict,
    GuestUnbootable,
    InvalidPlan,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    Throttled,
    Unavailable,
    Unsupported,
    WhimbrelError,
)


def answer(status: int, message: str, **headers: str) -> sdk.HttpException:
    response = requests.Response()
    response.status_code = status
    response.headers.update({"x-openstack-request-id": "req-1", "content-type": "application/json"})
    response.headers.update({key.replace("_", "-"): value for key, value in headers.items()})
    response._content = b'{"error": {"message": "%s"}}' % message.encode()
    response.url = "http://cloud/v3/things/1"
    response.request = requests.Request("GET", response.url).prepare()
    with pytest.raises(sdk.HttpException) as raised:
        sdk.raise_from_response(response)
    return raised.value


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "Invalid input for field size", InvalidPlan),
        (401, "The request you have made requires authentication.", AuthFailed),
        (403, "Policy doesn't allow volume_extension:volume_manage to be performed.", PermissionDenied),
        (403, "Quota exceeded for cores, instances: Requested 1, but already used 12 of 12 instances", QuotaExceeded),
        (404, "Volume 1 could not be found.", NotFound),
        (409, "MAC address fa:16:3e:00:00:01 is already in use", Conflict),
        (409, "Quota exceeded for resources: ['port'].", QuotaExceeded),
        (409, "Cannot 'stop' instance 1 while it is in task_state powering-off", NotReady),
        (409, "Instance 1 is locked", Conflict),
        (413, "VolumeSizeExceedsAvailableQuota: Requested volume exceeds allowed gigabytes quota.", QuotaExceeded),
        (500, "The server has either erred or is incapable of performing the requested operation.", Unavailable),
        (502, "Bad Gateway", Unavailable),
        (503, "The service is currently unable to handle the request", Unavailable),
        (406, "Version 2.99 is not supported by the API", Unsupported),
    ],
)  # fmt: skip
def test_answers_by_number_and_words(status: int, message: str, kind: type[WhimbrelError]) -> None:
    error = translate(answer(status, message), "asking for a thing")
    assert type(error) is kind
    assert error.message == f"asking for a thing failed: {message}"
    assert error.evidence == {"status": str(status), "request": "req-1"}
    assert error.action


@pytest.mark.parametrize("status", [413, 429, 503])
def test_a_pause_that_is_asked_for_is_kept(status: int) -> None:
    error = translate(answer(status, "This request was rate-limited.", Retry_After="17"), "asking")
    assert isinstance(error, Throttled)
    assert error.retry_after_s == 17.0


def test_a_quota_that_says_retry_at_once_is_a_quota() -> None:
    """Cinder's refusals for a quota (of transfers and backups) carry ``Retry-After: 0``."""
    told = "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota."
    error = translate(answer(413, told, Retry_After="0"), "accepting a transfer")
    assert type(error) is QuotaExceeded


def test_a_pause_may_be_a_date_or_nonsense() -> None:
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
    assert pause_s({"Retry-After": "Wed, 25 Nov 2026 12:00:30 GMT"}, now) == 30.0
    assert pause_s({"Retry-After": "Wed, 25 Nov 2026 11:00:30 GMT"}, now) == 0.0
    assert pause_s({"Retry-After": "99999"}, now) == 300.0
    assert pause_s({"Retry-After": "soon"}, now) == pause_s({}, now) == 5.0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (keystone.ConnectFailure("refused"), Unavailable),
        (keystone.ConnectTimeout("late"), Unavailable),
        (keystone.AuthorizationFailure("no"), AuthFailed),
        (keystone.MissingRequiredOptions([]), AuthFailed),
        (keystone.EndpointNotFound("compute"), Unsupported),
        (sdk.ConfigException("Cloud x was not found."), InvalidPlan),
        (requests.ConnectionError("reset"), Unavailable),
        (requests.ReadTimeout("late"), Unavailable),
    ],
)
def test_what_is_no_answer(error: Exception, kind: type[WhimbrelError]) -> None:
    assert type(translate(error, "asking")) is kind


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("No valid host was found. There are not enough hosts available.", QuotaExceeded),
        ("Build of instance 1 aborted: Failed to allocate the network(s)", GuestUnbootable),
        ("", GuestUnbootable),
    ],
)
def test_a_servers_fault_is_told(message: str, kind: type[WhimbrelError]) -> None:
    server = fakes.generate_fake_resource(Server, status="ERROR", fault={"code": 500, "message": message})
    error = server_fault(server)
    assert type(error) is kind
    assert message in error.message
    assert error.evidence["server"] == server.id


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        ("schedule allocate volume:Could not find any available weighted backend.", QuotaExceeded),
        ("", Conflict),
    ],
)
def test_a_volume_in_error_is_told(why: str, kind: type[WhimbrelError]) -> None:
    volume: Any = fakes.generate_fake_resource(Volume, status="error_deleting")
    error = volume_failed(volume, why)
    assert type(error) is kind
    assert "error_deleting" in error.message


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("error", "message list"),
        ("error_deleting", "snapshots, clones"),
        ("error_managing", "lies in the pool"),
        ("error_managing_deleting", "the image stays"),
        ("error_extending", "reset its state"),
        ("error_restoring", "not whole"),
        ("error_backing-up", "not touched"),
        ("error_of_tomorrow", "message list"),
    ],
)
def test_every_error_state_of_cinder_says_what_to_do(status: str, says: str) -> None:
    error = volume_failed(fakes.generate_fake_resource(Volume, status=status))
    assert type(error) is Conflict
    assert status in error.message
    assert says in error.action


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 408, 409, 413, 429, 500, 501, 502, 503, 504])
def test_every_answer_says_what_the_operator_can_do(status: int) -> None:
    error = translate(answer(status, "no"), "asking")
    assert error.action
    assert "report this" not in error.action, "that is for defects of ours"


class _Keystone(BaseHTTPRequestHandler):
    """Refuses every token, with the status that the test asks for."""

    status = 401

    def do_GET(self) -> None:
        body = b'{"version": {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": "http://%s/v3"}]}}'
        self._answer(200, body % str(self.headers["Host"]).encode())

    def do_POST(self) -> None:
        self._answer(self.status, b'{"error": {"code": 401, "message": "no token for you"}}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def clouds_yaml(tmp_path: Path) -> Path:
    return tmp_path / "clouds.yaml"


@pytest.fixture
def identity(clouds_yaml: Path) -> Iterator[type[_Keystone]]:
    handler = type("Keystone", (_Keystone,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    write(clouds_yaml, server.server_port)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def write(path: Path, port: int) -> None:
    auth = {"auth_url": f"http://127.0.0.1:{port}/v3", "username": "u", "password": "very-secret", "project_name": "p"}
    auth |= {"user_domain_id": "default", "project_domain_id": "default"}
    path.write_text(yaml.safe_dump({"clouds": {"here": {"auth": auth, "region_name": "R"}}}))


def ask(path: Path, cloud: str = "here") -> None:
    connection = Connection(cloud, config_file=path)
    try:
        with connection.using("listing servers") as conn:
            list(conn.compute.servers())
    finally:
        connection.close()


@pytest.mark.parametrize(("status", "kind"), [(401, AuthFailed), (503, Unavailable), (500, Unavailable)])
def test_keystones_refusals(
    identity: type[_Keystone], clouds_yaml: Path, status: int, kind: type[WhimbrelError]
) -> None:
    identity.status = status
    with pytest.raises(kind) as raised:
        ask(clouds_yaml)
    assert raised.value.message.startswith("listing servers failed: ")
    assert "very-secret" not in f"{raised.value} {raised.value.action} {raised.value.evidence}"


def test_nobody_listens(clouds_yaml: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        write(clouds_yaml, held.getsockname()[1])
        with pytest.raises(Unavailable):
            ask(clouds_yaml)


def test_an_unknown_entry_is_the_operators_to_correct(clouds_yaml: Path) -> None:
    write(clouds_yaml, 1)
    with pytest.raises(InvalidPlan) as raised:
        ask(clouds_yaml, "elsewhere")
    assert "clouds_yaml_name" in raised.value.action


def test_waiting_ends_as_not_ready() -> None:
    answers = iter([None, None, "there"])
    assert settled(lambda: next(answers), "waiting") == "there"
    with pytest.raises(NotReady, match="waiting for it"):
        settled(lambda: None, "waiting for it", patience_s=0.0)
