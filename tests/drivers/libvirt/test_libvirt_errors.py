"""What libvirt's errors become: the table, and that nothing of libvirt's crosses a port. Without a daemon."""

from __future__ import annotations

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.libvirt import qmp
from drivers.libvirt.connection import Connection
from drivers.libvirt.errors import BY_CODE, is_dead_connection, kind_of, translate, translated
from whimbrel.errors import (
    AuthFailed,
    BaseLost,
    Conflict,
    NotFound,
    NotReady,
    PermissionDenied,
    QuotaExceeded,
    Unavailable,
    Unsupported,
    WhimbrelError,
)

INTERNAL = libvirt.VIR_ERR_INTERNAL_ERROR
MET = [
    (INTERNAL, 'process exited: Failed to get "write" lock Is another process using the image [/p]?', Conflict),
    (INTERNAL, 'Failed to get shared "write" lock', Conflict),
    (libvirt.VIR_ERR_SYSTEM_ERROR, "cannot extend file '/p/v': No space left on device", QuotaExceeded),
    (libvirt.VIR_ERR_SYSTEM_ERROR, "Failed to connect socket to '/x': No such file or directory", Unavailable),
    (libvirt.VIR_ERR_SYSTEM_ERROR, "unable to connect to server at 'h:16514': Connection refused", Unavailable),
    (libvirt.VIR_ERR_SYSTEM_ERROR, "cannot open file '/p/x': Permission denied", PermissionDenied),
    (
        libvirt.VIR_ERR_SYSTEM_ERROR,
        "Cannot recv data: u@h: Permission denied (publickey): Connection reset",
        AuthFailed,
    ),
    (libvirt.VIR_ERR_AUTH_FAILED, "authentication failed: refused", AuthFailed),
    (libvirt.VIR_ERR_OPERATION_DENIED, "operation forbidden: read only access prevents x", PermissionDenied),
    (libvirt.VIR_ERR_NO_DOMAIN, "Domain not found: no domain with matching name 'x'", NotFound),
    (libvirt.VIR_ERR_NO_STORAGE_POOL, "Storage pool not found", NotFound),
    (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, "no domain checkpoint with matching name", BaseLost),
    (libvirt.VIR_ERR_CHECKPOINT_INCONSISTENT, "missing or broken bitmap 'k1' for disk 'vda'", BaseLost),
    (libvirt.VIR_ERR_OPERATION_TIMEOUT, "Timed out during operation: cannot acquire state change lock", Unavailable),
    (libvirt.VIR_ERR_OPERATION_FAILED, "domain 'x' already exists with uuid y", Conflict),
    (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, "cannot do it", Unsupported),
    (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding", NotReady),
    (INTERNAL, "pool 'shared' has asynchronous jobs running.", NotReady),
    (
        INTERNAL,
        "qemu unexpectedly closed the monitor: -vnc 127.0.0.1:0: Failed to find an available port: Address in use",
        NotReady,
    ),
    (INTERNAL, "internal error: qemu unexpectedly closed the monitor", NotReady),
    (INTERNAL, "qemu unexpectedly closed the monitor: 2026-11-26T01:00:00Z qemu: -drive: bad", WhimbrelError),
    (
        libvirt.VIR_ERR_SYSTEM_ERROR,
        "no access: '/dev/null/whimbrel-has-taken-this-disk/x/vda'",
        Conflict,
    ),
    (INTERNAL, "something that the table lacks", WhimbrelError),
]


class Raised(libvirt.libvirtError):  # type: ignore[misc]
    """A libvirt error as the library makes it, with chosen code and text."""

    def __init__(self, code: int, text: str, domain: int = libvirt.VIR_FROM_QEMU) -> None:
        super().__init__(text)
        self.err = (code, domain, text, libvirt.VIR_ERR_ERROR, None, None, None, -1, -1)

    def __str__(self) -> str:
        return str(self.err[2])


@pytest.mark.parametrize(("code", "text", "kind"), MET)
def test_what_was_met_is_told_apart(code: int, text: str, kind: type[WhimbrelError]) -> None:
    assert type(translate(Raised(code, text), "doing it")) is kind


@pytest.mark.parametrize(
    ("code", "text", "domain"),
    [
        (38, "Cannot write data: Broken pipe", libvirt.VIR_FROM_RPC),
        (1, "internal error: client socket is closed", libvirt.VIR_FROM_RPC),
        (38, "End of file while reading data: Input/output error", libvirt.VIR_FROM_RPC),
        (39, "internal error: received hangup event; keepalive timeout", libvirt.VIR_FROM_RPC),
    ],
)
def test_a_dead_connection_is_unavailable(code: int, text: str, domain: int) -> None:
    error = Raised(code, text, domain)
    assert is_dead_connection(error)
    assert type(translate(error, "asking")) is Unavailable


def test_a_refused_act_does_not_kill_the_connection() -> None:
    assert not is_dead_connection(Raised(libvirt.VIR_ERR_SYSTEM_ERROR, "No space left", libvirt.VIR_FROM_STORAGE))


def test_message_says_what_failed_and_why_on_one_line() -> None:
    error = translate(Raised(INTERNAL, "first\nsecond"), "starting vm1", vm="vm1")
    assert error.message == "starting vm1 failed: first second"
    assert error.evidence == {"libvirt_code": str(INTERNAL), "vm": "vm1"}
    assert isinstance(error.__cause__, libvirt.libvirtError)


def test_translated_lets_our_own_errors_through() -> None:
    with pytest.raises(NotReady), translated("waiting"):
        raise NotReady("not yet")
    with pytest.raises(Conflict), translated("starting"):
        raise Raised(libvirt.VIR_ERR_OPERATION_INVALID, "domain is running")


@given(st.integers(-5, 200), st.text(max_size=200))
def test_every_error_has_a_class(code: int, text: str) -> None:
    assert issubclass(kind_of(code, text), WhimbrelError)


def test_no_code_of_the_table_is_unknown_to_libvirt() -> None:
    assert None not in BY_CODE
    assert all(isinstance(code, int) for code in BY_CODE)


@pytest.mark.parametrize(
    ("text", "kind"),
    [('Failed to get "write" lock', Conflict), ("No space left on device", QuotaExceeded), ("odd", WhimbrelError)],
)
def test_what_qemu_refuses_joins_the_taxonomy(text: str, kind: type[WhimbrelError]) -> None:
    connection = Connection("test:///default")
    with pytest.raises(WhimbrelError) as raised, connection.using("adding"):
        raise qmp.QmpError("blockdev-add", text)
    assert type(raised.value) is kind
    connection.close()


def test_the_password_is_asked_for_and_never_kept() -> None:
    asked: list[str] = []

    def credential() -> str:
        asked.append("once")
        return "s3cret"

    connection = Connection("qemu+tcp://h/system", username="mover", credential=credential)
    items = [
        [libvirt.VIR_CRED_AUTHNAME, "Username", None, None, None],
        [libvirt.VIR_CRED_PASSPHRASE, "Password", None, None, None],
    ]
    assert connection._answer(items, None) == 0
    assert [item[4] for item in items] == ["mover", "s3cret"]
    assert "s3cret" not in repr(vars(connection))
    assert asked == ["once"]
    assert Connection("qemu:///system")._answer(items, None) == -1


def test_a_users_name_in_the_uri_does_not_reach_errors() -> None:
    connection = Connection("qemu+unix://someone@/system?socket=/nowhere")
    with pytest.raises(WhimbrelError) as raised, connection.using("trying"):
        pass
    assert "someone" not in str(raised.value)


def test_a_connection_is_opened_again_after_close() -> None:
    connection = Connection("test:///default")
    for _ in range(2):
        with connection.using("listing") as conn:
            assert [domain.name() for domain in conn.listAllDomains()] == ["test"]
        connection.close()
    connection.close()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Cannot recv data: Host key verification failed.: Connection reset by peer", "known_hosts"),
        ("Cannot recv data: Value too large for defined data type", "known_hosts"),  # ssh said more than 1 KiB
        ("Cannot recv data: root@h: Permission denied (publickey).: Connection reset", "authorized_keys"),
        ("Unable to verify TLS peer: The certificate is not trusted.", "virt-pki-validate"),
    ],
)
def test_failures_of_connecting_say_what_to_do(text: str, word: str) -> None:
    assert word in translate(libvirt.libvirtError(text), "connecting to libvirt").action


def test_other_failures_keep_the_action_of_their_class() -> None:
    assert translate(libvirt.libvirtError("no space left"), "making x").action == QuotaExceeded.default_action
