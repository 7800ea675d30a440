"""Deployment files that cannot be run here: they parse, refer to what exists, and fit the worker's settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from whimbrel.config.clouds import load_text
from whimbrel.runtime.settings import WorkerSettings

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
UNITS = DEPLOY / "systemd"
GRACE_S = WorkerSettings().graceful_shutdown_s
SETTINGS = {f"WHIMBREL_{name.upper()}" for name in WorkerSettings.model_fields}


def settings_in(text: str) -> set[str]:
    return set(re.findall(r"WHIMBREL_[A-Z_]+[A-Z]", text))


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.suffix != ".txt"],
    ids=lambda path: str(path.relative_to(DEPLOY)),
)
def test_only_settings_that_the_worker_knows_are_named(path: Path) -> None:
    assert settings_in(path.read_text()) <= SETTINGS


# -- systemd ------------------------------------------------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """Key -> values, whatever the section: no key of ours means two things."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def environment(of: dict[str, list[str]]) -> dict[str, str]:
    return dict(item.split("=", 1) for item in of["Environment"])


def test_the_unit_gives_the_worker_more_time_than_it_takes() -> None:
    worker = unit("whimbrel-worker.service")
    grace = float(environment(worker)["WHIMBREL_GRACEFUL_SHUTDOWN_S"])
    assert grace == GRACE_S
    assert float(worker["TimeoutStopSec"][0]) > grace


def test_the_watch_looks_at_the_file_that_the_worker_touches() -> None:
    worker, watch = unit("whimbrel-worker.service"), unit("whimbrel-worker-watch.service")
    health = Path(environment(worker)["WHIMBREL_HEALTH_FILE"])
    assert health.parent.name in worker["RuntimeDirectory"][0].split()
    assert health.parent.parent == Path("/run")
    assert f"probe-health {health} " in watch["ExecStart"][0]
    assert "try-restart whimbrel-worker.service" in watch["ExecStart"][0]


def test_no_secret_is_in_the_environment_and_workers_share_their_locks() -> None:
    worker = unit("whimbrel-worker.service")
    assert not [name for name in environment(worker) if re.search("KEY|TOKEN|PASSWORD|SECRET", name)]
    assert environment(worker)["TEMPORAL_CONFIG_FILE"].removeprefix("%d/") in worker["LoadCredential"][0]
    assert "PrivateTmp" not in worker
    assert environment(worker)["TMPDIR"] in {f"/var/lib/{name}" for name in worker["StateDirectory"][0].split()}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("extra", [None, "hypervisor.conf"])
def test_systemd_accepts_the_units(tmp_path: Path, extra: str | None) -> None:
    program = Path(sys.executable).parent / "whimbrel-worker"
    assert program.exists()
    for path in (*UNITS.glob("*.service"), *UNITS.glob("*.timer")):
        text = path.read_text().replace("/opt/whimbrel/.venv/bin/whimbrel-worker", str(program))
        text = text.replace("/opt/whimbrel", str(REPOSITORY))
        # Nobody needs to exist for the syntax to be looked at.
        (tmp_path / path.name).write_text(re.sub("^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE))
    if extra is not None:
        dropins = tmp_path / "whimbrel-worker.service.d"
        dropins.mkdir()
        shutil.copy(UNITS / extra, dropins)
    files = [str(path) for path in sorted(tmp_path.iterdir()) if path.is_file()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "whimbrel" in line]
    assert not ours
    assert done.returncode == 0, done.stderr


# -- container ----------------------------------------------------------------------------------------------------

CONTAINERFILE = (DEPLOY / "container/Containerfile").read_text()


def copied() -> list[str]:
    lines = [line.split()[1:] for line in CONTAINERFILE.splitlines() if line.startswith("COPY ")]
    return [source for words in lines if not words[0].startswith("--from") for source in words[:-1]]


def test_the_image_copies_what_exists_and_the_build_context_lets_it_through() -> None:
    ignored = (DEPLOY / "container/Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    assert "*" in ignored
    for source in copied():
        assert (REPOSITORY / source).exists(), source


def test_the_image_holds_all_that_the_wheel_holds() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    only = re.search(r"only-include = \[(.*)\]", project)
    assert only is not None
    assert set(re.findall(r'"([^"]+)"', only[1])) <= set(copied())


def test_the_image_builds_with_the_makefiles_uv() -> None:
    wanted = re.search(r"^UV_VERSION := (\S+)", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    assert wanted is not None
    assert f"uv=={wanted[1]}" in CONTAINERFILE


def test_the_image_does_not_run_as_root() -> None:
    users = [line.split()[1] for line in CONTAINERFILE.splitlines() if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"0", "root"}


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s", text)
    return float(text[:-1])


def test_compose_gives_the_worker_more_time_than_it_takes_and_keeps_its_state() -> None:
    compose: dict[str, Any] = yaml.safe_load((DEPLOY / "container/compose.yaml").read_text())
    worker = compose["services"]["worker"]
    assert seconds(worker["stop_grace_period"]) > GRACE_S
    assert (DEPLOY / "container" / worker["build"]["context"] / worker["build"]["dockerfile"]).resolve().exists()
    for volume in worker["volumes"]:
        name = volume.split(":")[0]
        assert name.startswith("./") or name in compose["volumes"]
    assert {secret["source"] for secret in worker["secrets"]} == set(compose["secrets"])
    assert worker["environment"]["TEMPORAL_CONFIG_FILE"] in {secret["target"] for secret in worker["secrets"]}


# -- Kubernetes ---------------------------------------------------------------------------------------------------


def manifests() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load_all((DEPLOY / "kubernetes/worker.yaml").read_text())
    return {document["kind"]: document for document in found}


def test_kubernetes_objects_agree_with_each_other() -> None:
    made = manifests()
    deployment = made["Deployment"]["spec"]
    pod = deployment["template"]
    assert deployment["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    (container,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    claim = volumes["state"]["persistentVolumeClaim"]["claimName"]
    assert claim == made["PersistentVolumeClaim"]["metadata"]["name"]
    for kind, document in made.items():
        if kind != "Namespace":
            assert document["metadata"]["namespace"] == made["Namespace"]["metadata"]["name"]


def test_kubernetes_waits_for_the_worker_and_probes_its_file() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(given["WHIMBREL_GRACEFUL_SHUTDOWN_S"]) >= GRACE_S
    for probe in ("startupProbe", "livenessProbe"):
        program, path, _age = container[probe]["exec"]["command"]
        assert path == given["WHIMBREL_HEALTH_FILE"]
        assert f"COPY deploy/{program} /usr/local/bin/{program}" in CONTAINERFILE
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert str(Path(given["WHIMBREL_HEALTH_FILE"]).parent) in writable


def test_kubernetes_configuration_loads() -> None:
    text = manifests()["ConfigMap"]["data"]["whimbrel.yaml"]
    config = load_text(text, "whimbrel.yaml", Path("/etc/whimbrel"))
    mounts = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    paths = {mount["mountPath"] for mount in mounts}
    assert str(config.state_path({})) in paths
    for name in config.clouds:
        cloud = config.cloud(name)
        assert cloud.kind == "libvirt"
        assert cloud.transport == "tls", "nothing else reaches a hypervisor from a pod safely"
        assert cloud.tls_dir in paths


# -- Temporal -----------------------------------------------------------------------------------------------------


def setup_database(tmp_path: Path, *arguments: str, **changed: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the script with a tool that writes down what it is asked; its log."""
    tool, log = tmp_path / "tool", tmp_path / "log"
    tool.write_text(f'#!/bin/sh\necho "$SQL_PLUGIN $SQL_DATABASE $*" >>{log}\n')
    tool.chmod(0o755)
    settings = {"SQL_HOST": "h", "SQL_PORT": "1", "SQL_USER": "u", "SQL_PASSWORD": "not-told", **changed}
    done = subprocess.run(
        [DEPLOY / "temporal/setup-database", *arguments],
        env={"PATH": "/usr/bin:/bin", "TEMPORAL_SQL_TOOL": str(tool), **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done, log.read_text() if log.exists() else ""


def test_new_databases_get_their_schemas_and_the_password_is_no_argument(tmp_path: Path) -> None:
    done, log = setup_database(tmp_path, "new")
    assert done.returncode == 0
    assert log.splitlines() == [
        "postgres12 temporal create-database",
        "postgres12 temporal setup-schema -v 0.0",
        "postgres12 temporal update-schema --schema-name postgresql/v12/temporal",
        "postgres12 temporal_visibility create-database",
        "postgres12 temporal_visibility setup-schema -v 0.0",
        "postgres12 temporal_visibility update-schema --schema-name postgresql/v12/visibility",
    ]


def test_an_upgrade_never_sets_a_schema_up_anew(tmp_path: Path) -> None:
    done, log = setup_database(tmp_path, "upgrade")
    assert done.returncode == 0
    assert "setup-schema" not in log
    assert len(log.splitlines()) == 2


@pytest.mark.parametrize("arguments", [(), ("again",)])
def test_the_database_script_refuses_other_words(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done, log = setup_database(tmp_path, *arguments)
    assert (done.returncode, log) == (2, "")


def test_the_database_script_names_a_missing_setting(tmp_path: Path) -> None:
    done, log = setup_database(tmp_path, "new", SQL_PASSWORD="")
    assert (done.returncode, log) == (2, "")
    assert "SQL_PASSWORD" in done.stderr
