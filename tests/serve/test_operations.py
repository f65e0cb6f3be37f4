"""Files to run the server with say what is so: flags, routes, metrics and files that exist, and times that fit."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from minillm.serve.__main__ import _parse
from minillm.serve.app import ROUTES
from minillm.serve.doors import OPEN
from minillm.serve.metrics import Metrics
from tests.conftest import ROOT

OPERATIONS = ROOT / "examples/serve"


class NoModels:
    all = loaded = ()


def flags(words: list[str]) -> Any:
    """What the command makes of them."""
    return _parse([word.replace("${CREDENTIALS_DIRECTORY}", "/run/c") for word in words])


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s?", str(text))
    assert found, text
    return int(found[1])


def dockerfile() -> dict[str, list[str]]:
    """The instructions of each kind, lines joined."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            kind, _, rest = line.partition(" ")
            found.setdefault(kind, []).append(rest.strip())
    return found


def test_the_image_starts_the_command_as_no_root() -> None:
    found = dockerfile()
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"}
    assert set(found) == {*known, "ARG", "USER"}
    (entry,) = found["ENTRYPOINT"]
    words = json.loads(entry)
    assert words[:3] == ["python", "-m", "minillm.serve"]
    given = flags(words[3:])
    assert (given.host, str(given.port)) == ("0.0.0.0", found["EXPOSE"][0])
    assert found["USER"] == ["minillm"] * 2  # the last word of both images
    check = json.loads(found["HEALTHCHECK"][0].split("CMD", 1)[1])
    assert f":{given.port}/health" in check[-1]
    compile(check[-1], "HEALTHCHECK", "exec")
    for line in found["COPY"]:
        *sources, target = line.split()
        assert all((ROOT / source).exists() for source in sources)
        assert f"!{sources[0]}" in (ROOT / ".dockerignore").read_text().splitlines()
        assert target in ("./", sources[0])


def test_the_image_installs_what_there_is() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for line in dockerfile()["RUN"]:
        if extras := re.search(r"'\.\[([\w,]+)\]'", line):
            assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras[1].split(","))


def compose() -> Any:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_compose_serves_this_machine_only_and_asks_for_keys(name: str) -> None:
    service = compose()["services"][name]
    given = flags(service["command"])
    assert given.api_keys == "/run/secrets/keys"
    assert service["secrets"] == list(compose()["secrets"]) == ["keys"]
    assert [port.startswith("127.0.0.1:") for port in service["ports"]] == [True]
    assert service["ports"][0].endswith(f":{given.port}")
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert seconds(service["stop_grace_period"]) > given.drain_timeout
    stages = [line.split(" AS ")[1] for line in dockerfile()["FROM"]]
    assert service["build"]["target"] in stages
    assert set(service["build"].get("args", {})) <= {line.partition("=")[0] for line in dockerfile()["ARG"]}


def test_compose_is_what_docker_reads() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker compose here")
    done = subprocess.run(
        ["docker", "compose", "--profile", "cpu", "--profile", "gpu", "config", "--quiet"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_service_of_systemd() -> None:
    reader = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    reader.optionxform = str  # type: ignore[assignment,method-assign]
    reader.read(OPERATIONS / "minillm.service")
    service = reader["Service"]
    words = shlex.split(service["ExecStart"])
    assert words[1:3] == ["-m", "minillm.serve"]
    given = flags(words[3:])
    assert given.host == "127.0.0.1"
    assert Path(given.api_keys).name == service["LoadCredential"].partition(":")[0]
    assert seconds(service["TimeoutStopSec"]) > given.drain_timeout
    assert service["KillSignal"] == "SIGTERM"


def test_the_service_is_what_systemd_reads(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    text = (OPERATIONS / "minillm.service").read_text().replace("/opt/minillm/venv/bin/python", "/bin/true")
    (tmp_path / "minillm.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "minillm.service")], capture_output=True, text=True
    )
    assert "minillm.service" not in done.stderr, done.stderr


def test_kubernetes_asks_after_health_and_waits_for_the_end() -> None:
    deployment, service = yaml.safe_load_all((OPERATIONS / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = flags(container["args"])
    (port,) = container["ports"]
    assert port["containerPort"] == given.port
    paths = {path for method, path, _ in ROUTES if method == "GET"}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths & OPEN
        assert asked["port"] == port["name"] == service["spec"]["ports"][0]["targetPort"]
    sleeps = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleeps + given.drain_timeout
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert given.weights.startswith(mounts["models"])
    assert given.api_keys.startswith(mounts["keys"])
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    user = next(line for line in dockerfile()["RUN"] if line.startswith("useradd"))
    assert str(pod["securityContext"]["runAsUser"]) in user


def test_prometheus_reads_a_route_that_there_is() -> None:
    (job,) = yaml.safe_load((OPERATIONS / "prometheus.yaml").read_text())["scrape_configs"]
    assert ("GET", job["metrics_path"]) in {(method, path) for method, path, _ in ROUTES}
    assert job["authorization"]["type"] == "Bearer"


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    """With the labels that they have."""
    metrics = Metrics(NoModels(), "minillm")  # type: ignore[arg-type]
    known: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        known |= {family.name + suffix: set() for suffix in suffixes}
    for collector in metrics.registry._names_to_collectors.items():
        if collector[0] in known:
            known[collector[0]] = {*collector[1]._labelnames, "le"}
    board = json.loads((OPERATIONS / "grafana.json").read_text())
    used = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            for name, selected in re.findall(r"(minillm:\w+)(\{[^}]*\})?", target["expr"]):
                assert name in known, name
                used.add(name)
                assert set(re.findall(r"(\w+)=~", selected)) <= known[name], name
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= set(re.findall(r"by \(([\w, ]+)\)", target["expr"]))
    assert len(used) >= 15
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
    (query,) = (each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query")
    assert re.search(r"minillm:\w+", query)[0] in known  # type: ignore[index]
