"""The log: lines for a person, objects for a machine."""

import json
import os

import pytest

from cluster.telemetry import Meter, say


def test_a_log_of_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MANET_LOG", raising=False)
    say("hello", part="00001")
    with Meter("describe", 10, "pictures") as meter:
        meter.advance(4, part="00000")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "hello"
    assert lines[1].startswith("describe: 4/10 pictures")
    assert len(lines) == 2


def test_a_log_of_objects_names_job_stage_and_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANET_LOG", "json")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    say("hello")
    with Meter("describe", 10, "pictures") as meter:
        meter.advance(4, part="00000")
        meter.advance(6, part="00001")
    first, *parts = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert first["message"] == "hello"
    assert {each["job"] for each in (first, *parts)} == {"raysubmit_1"}
    assert [(each["stage"], each["part"], each["done"], each["total"], each["unit"]) for each in parts] == [
        ("describe", "00000", 4, 10, "pictures"),
        ("describe", "00001", 10, 10, "pictures"),
    ]
    assert first["time"].endswith("+00:00")


def test_a_job_that_nobody_submitted_goes_by_its_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANET_LOG", "json")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    say("hello")
    assert json.loads(capsys.readouterr().err)["job"].endswith(f":{os.getpid()}")
