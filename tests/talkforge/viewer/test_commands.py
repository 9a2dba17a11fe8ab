"""`talkforge view` and `talkforge audit` on the command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from talkforge.local_page import Server
from talkforge.pipeline import audit, review
from talkforge.pipeline.store import Store
from tests.command_line import run
from tests.conftest import ROOT, Curated


def said_by_key(monkeypatch: pytest.MonkeyPatch, **said: Any) -> list[str]:
    """Instead of serving, say this of the first clip that is listed; the addresses that were served."""
    urls: list[str] = []

    def serve(server: Server) -> None:
        urls.append(server.url)
        app: Any = server._server.app
        client = app.test_client()
        path = server.url.split("/", 3)[3]
        first = client.get(f"/{path}clips").json["clips"][0]
        assert client.post(f"/{path}clip/{first}/review", json=said).status_code == 200
        server._server.server_close()

    monkeypatch.setattr(Server, "run", serve)
    return urls


def test_view_says_where_the_page_is_and_what_waits(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = said_by_key(monkeypatch, decision="drop")
    code, out, err = run("view", curated.dataset)
    assert (code, "Ctrl-C ends this" in err) == (0, True)
    assert out.splitlines() == [urls[0], f"1 decisions wait: talkforge select {curated.dataset}"]
    _, status, _ = run("status", curated.dataset)
    assert f"1 decisions of reviewers are not selected yet: talkforge select {curated.dataset}" in status
    assert run("select", curated.dataset)[0] == 0
    assert json.loads(run("status", curated.dataset, "--json")[1])["decisions_not_selected"] == 0


def test_an_audit_goes_on_and_its_result_is_printed(
    curated: Curated, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(curated.dataset))
    said_by_key(monkeypatch, label="bad", reason="frozen")
    code, out, _ = run("audit", curated.dataset)
    assert code == 0
    assert out.splitlines()[1:] == [f"1 of 2 clips have a label: talkforge audit {curated.dataset} --result"]
    drawn = audit.read(store)
    assert run("audit", curated.dataset)[0] == 0 and audit.read(store) == drawn  # the same sample
    code, out, _ = run("audit", curated.dataset, "--result", "--json")
    found = json.loads(out)
    assert (code, found["drawn"], found["good"], found["bad"]) == (0, 2, 0, 1)
    assert (found["precision"]["value"], found["accepted_bad"]) == (0.0, {"frozen": 1})
    code, out, _ = run("audit", curated.dataset, "--result")
    assert "1 of 2 drawn clips labelled, 0 good, 1 bad (seed 0)" in out
    assert "accepted and bad: frozen 1" in out
    assert run("audit", curated.dataset, "--seed", 3)[0] == 0
    assert {row.seed for row in audit.read(store)} == {3}
    assert [row.label for row in review.read(store).values()].count("bad") >= 1  # labels stay


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("audit", "--result"), "no sample was drawn"),
        (("audit", "--result", "--clips", "3"), "--result: goes without --clips and --seed"),
        (("audit", "--json"), "--json: goes with --result"),
        (("view", "--clip", "nobody"), "no clip 'nobody'"),
        (("view", "--port", "99999"), "--port"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    measured: Curated, arguments: tuple[str, ...], problem: str
) -> None:
    code, out, err = run(arguments[0], measured.dataset, *arguments[1:])
    assert (code, out) == (2, "") and problem in err and len(err.splitlines()) == 1


def test_ctrl_c_ends_the_page(measured: Curated) -> None:
    command = [sys.executable, "-m", "talkforge", "view", str(measured.dataset)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        url = running.stdout.readline().strip()
        with urllib.request.urlopen(url) as answer:
            assert b"<title>Clips of " in answer.read()
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 0
    assert url.rsplit("/", 2)[1] not in err  # the secret stays out of logs
