# ruff: noqa: T201 - its output is how it is followed
"""What the benchmark's guest does after its boot; runs inside the guest, as /opt/whb/work.py.

The kernel's command line says what: ``whb.app=NAME`` starts a program, ``whb.queries=COUNT whb.seed=N`` works on the
database. It tells on the console when each begins and ends, so that the trace can be cut there.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from pathlib import Path

APPLICATIONS = {
    "pip": ["/usr/bin/python3", "-m", "pip", "list"],
    "web": [
        *("/usr/bin/python3", "-c"),
        (
            "import asyncio, email.mime.text, http.server, ssl, xml.dom.minidom, sqlite3, json, decimal, jwt, yaml, "
            "logging.config, concurrent.futures, multiprocessing.pool, urllib.request, unittest.mock, httplib2, "
            "cryptography.x509, cryptography.hazmat.primitives.asymmetric.rsa, oauthlib.oauth2, dbus, gi, pygments"
        ),
    ],
    "git": ["/usr/bin/git", "init", "-q", "/tmp/some"],
    "vim": ["/usr/bin/vim", "-es", "-c", "syntax on", "-c", "q"],
    "psql": ["/usr/lib/postgresql/15/bin/initdb", "--version"],
}
PAUSE_S = 4.0


def say(text: str) -> None:
    """A line on the console."""
    print(f"WHB {text}", flush=True)


def queries(count: int, seed: int) -> None:
    """Look-ups, ranges, joins and some updates; customers by a skewed choice, as in a shop."""
    rng = random.Random(seed)
    base = sqlite3.connect("/opt/whb/orders.db")
    base.execute("PRAGMA cache_size=-2000")
    for number in range(count):
        customer = int(40_000 * rng.random() ** 3)
        kind = rng.random()
        if kind < 0.5:
            base.execute("SELECT * FROM customer WHERE id=?", (customer * 7919 % 40_000,)).fetchall()
        elif kind < 0.8:
            base.execute(
                "SELECT sum(amount), max(note) FROM orders WHERE customer=?", (customer * 7919 % 40_000,)
            ).fetchall()
        elif kind < 0.9:
            day = int(365 * 5 * (1 - rng.random() ** 2 / 3)) - 1
            base.execute("SELECT max(amount) FROM orders WHERE day=? AND amount<800", (day,)).fetchall()
        elif kind < 0.97:
            base.execute("SELECT note FROM orders WHERE id=?", (int(500_000 * rng.random()),)).fetchall()
        else:
            with base:
                base.execute("UPDATE orders SET amount=amount+1 WHERE id=?", (int(500_000 * rng.random() ** 2),))
        if number % 50 == 0:
            time.sleep(0.02)
    base.close()


def main() -> None:
    """Do what the command line says, and switch off."""
    words = dict(word.partition("=")[::2] for word in Path("/proc/cmdline").read_text().split())
    say("booted")
    time.sleep(PAUSE_S)
    app = words.get("whb.app")
    if app:
        say("app-begin")
        subprocess.run(APPLICATIONS[app], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        say("app-end")
        time.sleep(PAUSE_S)
    if "whb.queries" in words:
        say("db-begin")
        queries(int(words["whb.queries"]), int(words.get("whb.seed", "1")))
        say("db-end")
        time.sleep(PAUSE_S)
    say("done")
    subprocess.run(["/usr/bin/systemctl", "poweroff"], check=False)


if __name__ == "__main__":
    main()
