"""The service against its own OpenAPI: whatever is sent, it answers as described, never fails, and changes nothing."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from dashboards import files_of
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

# Those of schemathesis that hold of every server. Others suppose that every refusal is 4xx of one kind.
CHECKS = (
    checks.not_a_server_error,
    schemathesis.checks.CHECKS.get_one("response_schema_conformance"),
    schemathesis.checks.CHECKS.get_one("content_type_conformance"),
)
EXAMPLES = 25
STREAM = "/api/stream"  # never ends; test_stream.py holds it


def operations(address):
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def fuzz(address, headers, mode, real_run):
    """Every operation with generated parameters and bodies; some with the name of a run that is there."""
    for operation in operations(address):

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers_as_described(case, operation=operation):
            if operation.path == STREAM and mode is schemathesis.GenerationMode.POSITIVE:
                return
            if "{run}" in operation.path and real_run:
                case.path_parameters = {**(case.path_parameters or {}), "run": "plain"}
            answer = case.call(headers=headers, timeout=10)
            case.validate_response(answer, checks=CHECKS)
            assert answer.status_code < 500
            if mode is schemathesis.GenerationMode.NEGATIVE and not headers and operation.path.startswith("/api/runs"):
                assert answer.status_code >= 400

        answers_as_described()


@pytest.mark.e2e
@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
@pytest.mark.parametrize("token", [None, "look", "rule"])
def test_it_answers_as_described_and_changes_nothing(locked, runs, token, mode):
    before = files_of(runs)
    fuzz(locked, {"Authorization": f"Bearer {token}"} if token else {}, mode, real_run=token is not None)
    assert files_of(runs) == before
    assert httpx.get(f"{locked}/healthz").status_code == 200
