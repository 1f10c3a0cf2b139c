"""The service against its own OpenAPI: whatever is sent, it answers as described, never fails, and changes nothing."""

from __future__ import annotations

import httpx
import pytest
import schemathesis
from dashboards import files_of, serving
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from server.dashboard.auth import Tokens

CHECKS = (
    checks.not_a_server_error,
    checks.response_schema_conformance,
    checks.content_type_conformance,
    checks.status_code_conformance,
)
EXAMPLES = 20
STREAM, LOGOUT = "/api/stream", "DELETE"  # the one never ends, test_stream.py holds it; the other would end the test
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


def fuzz(operation, mode, headers, run):
    """Generated parameters and bodies, well-formed or not; of the run `run` if that is not None."""

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers_as_described(case):
        if run and "{run}" in operation.path:
            case.path_parameters = {**(case.path_parameters or {}), "run": run}
        answer = case.call(headers=headers, timeout=10)
        case.validate_response(answer, checks=CHECKS)
        if not headers and operation.path.startswith("/api/runs"):
            assert 400 <= answer.status_code < 500

    answers_as_described()


@pytest.mark.e2e
@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE])
@pytest.mark.parametrize("token", [None, "look", "rule"])
def test_it_answers_as_described_and_changes_nothing(runs, token, mode):
    before = files_of(runs)
    with serving(runs, Tokens.of(viewer="look", admin="rule")) as address:
        headers = {}
        if token:
            login = httpx.post(f"{address}/api/session", json={"token": token})
            cookies = "; ".join(f"{name}={value}" for name, value in login.cookies.items())
            headers = {"Cookie": cookies, "X-CSRF-Token": login.json()["csrf"]}
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            # A path takes any text, so that only the query or the body can be of the wrong form.
            possible = mode is POSITIVE or len(operation.query) or len(operation.body)
            if possible and operation.path != STREAM and not (token and operation.method.upper() == LOGOUT):
                fuzz(operation, mode, headers, "plain" if token else None)
        assert httpx.get(f"{address}/healthz").status_code == 200
        assert not token or httpx.get(f"{address}/api/runs", headers=headers).status_code == 200
    assert files_of(runs) == before
