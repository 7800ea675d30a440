"""The server as a process, with the clients of others: qemu-io, qemu-img, nbdinfo, nbdcopy."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.nbd.programs import qemu_nbd, run
from tests.stream.streams import CHUNK, MIB, PATIENCE_S, config_for, json_of, make_source, process, qemu_io, until
from whimbrel.model.endpoint import NbdEndpoint

pytestmark = pytest.mark.interop
SIZE = 16 * MIB + 5 * 512


def test_clients_of_others_see_the_source_and_write(spot: Path) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE))
    with qemu_nbd(spot, spot / "source.raw", "--read-only") as sock:
        config = config_for(spot, SIZE, NbdEndpoint(unix_path=str(sock)), background=False, export="vda")
        with process(spot, config) as server:
            uri = f"nbd+unix:///vda?socket={spot / 'nbd'}"
            told = json_of("nbdinfo", "--json", "--no-content", uri)["exports"][0]
            assert told["export-size"] == SIZE
            assert not told["is_read_only"]
            flags = ("can_cache", "can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero")
            assert all(told[flag] for flag in flags)
            assert set(told["contexts"]) == {"base:allocation", "x-whimbrel:local"}
            until(lambda: server.status()["holes_known"], "holes")
            entries = json_of("nbdinfo", "--json", "--map=x-whimbrel:local", uri)
            for entry in entries:
                if entry["type"] == 1:
                    assert not any(content[entry["offset"] : entry["offset"] + entry["length"]])
            local = sum(entry["length"] for entry in entries if entry["type"] == 1)
            assert local // CHUNK == server.status()["chunks"] - server.status()["missing_chunks"] > 0
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, str(spot / "source.raw"))
            assert server.status()["complete"]

            qemu_io(
                uri,
                "write -P 0x11 100 1000",
                "write -f -P 0x22 65536 200k",
                "write -z 1M 300k",
                "discard 2M 1M",
                "write -z -u 4M 128k",
                "flush",
            )
            content[100:1100] = b"\x11" * 1000
            content[CHUNK : CHUNK + 200 * 1024] = b"\x22" * (200 * 1024)
            content[MIB : MIB + 300 * 1024] = bytes(300 * 1024)
            content[2 * MIB : 3 * MIB] = bytes(MIB)
            content[4 * MIB : 4 * MIB + 128 * 1024] = bytes(128 * 1024)
            run("nbdcopy", "--connections=4", uri, str(spot / "out"))
            assert (spot / "out").read_bytes() == content
            assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == content


def test_writes_before_anything_is_local(spot: Path) -> None:
    content = bytearray(make_source(spot / "source.raw", SIZE, share=1.0))
    with process(spot, config_for(spot, SIZE, background=False)) as server:
        uri = f"nbd+unix:///?socket={spot / 'nbd'}"
        qemu_io(
            uri,
            "write -P 0x33 65000 1000",
            "write -P 0x44 1M 64k",
            "write -z 3145000 300000",
            "discard 5M 65k",
            f"write -P 0x55 {SIZE - 512} 512",
            "flush",
        )
        content[65000:66000] = b"\x33" * 1000
        content[MIB : MIB + CHUNK] = b"\x44" * CHUNK
        content[3145000:3445000] = bytes(300000)
        content[5 * MIB : 5 * MIB + CHUNK] = bytes(CHUNK)
        content[SIZE - 512 :] = b"\x55" * 512
        status = server.status()
        assert status["statistics"]["misses"] == status["statistics"]["miss_latency"]["count"] > 0
        server.ask("resume")
        until(lambda: server.status()["complete"], "end of the hydration")
        run("nbdcopy", uri, str(spot / "out"))
        got = (spot / "out").read_bytes()
        # A discard leaves open what the 1 KiB beyond the last whole chunk reads as: the source's bytes, here.
        assert got == content
    assert (spot / "target.raw").read_bytes() == content


def test_a_disk_written_through_nbdcopy_while_it_hydrates(spot: Path) -> None:
    make_source(spot / "source.raw", SIZE)
    wanted = make_source(spot / "new.raw", SIZE, seed=2)
    with process(spot, config_for(spot, SIZE)) as server:
        uri = f"nbd+unix:///?socket={spot / 'nbd'}"
        run("nbdcopy", "--flush", str(spot / "new.raw"), uri)
        assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == wanted


def test_qemu_goes_on_after_the_server_was_killed(spot: Path) -> None:
    """QEMU's own reconnecting client, as a guest's disk uses it: it waits, connects again, and finds what it wrote."""
    content = bytearray(make_source(spot / "source.raw", SIZE, share=1.0))
    options = f"driver=nbd,server.type=unix,server.path={spot / 'nbd'},reconnect-delay=90"
    with process(spot, config_for(spot, SIZE, background=False)) as server:
        argv = ["qemu-io", "--image-opts", options]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
            assert qemu.stdin is not None
            # One line at a time: qemu-io takes more into its buffer, and then waits for input.
            for number, line in enumerate(("write -P 0x66 1000 5000\n", "write -P 0x77 1M 64k\n"), 1):
                qemu.stdin.write(line)
                qemu.stdin.flush()
                until(lambda n=number: server.status()["written_chunks"] == n, "write", 30)  # type: ignore[misc]
            server.kill()
            qemu.stdin.write("read -P 0x66 1000 5000\nwrite -P 0x88 2M 100k\nread -P 0x77 1M 64k\nflush\nquit\n")
            qemu.stdin.flush()
            time.sleep(0.2)
            server.start()
            output, _ = qemu.communicate(timeout=PATIENCE_S)
        assert "failed" not in output.lower(), output
        assert output.count("5000/5000") == 2
        content[1000:6000] = b"\x66" * 5000
        content[MIB : MIB + CHUNK] = b"\x77" * CHUNK
        content[2 * MIB : 2 * MIB + 100 * 1024] = b"\x88" * (100 * 1024)
        run("nbdcopy", f"nbd+unix:///?socket={spot / 'nbd'}", str(spot / "out"))
        assert (spot / "out").read_bytes() == content
        assert server.terminate() == 0
    assert (spot / "target.raw").read_bytes() == content
