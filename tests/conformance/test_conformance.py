"""The gateway is judged with the public MCP conformance suite, in both roles, and with the schema of each revision.

Knows which forms there are; what a scenario looks at is the suite's business.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.conformance import fixture
from tests.conformance.runs import AT_ONCE, CLIENT, CLIENT_REVISIONS, FORMS, SIGNING, Order, Run
from tests.conformance.signing import PREFIX
from tests.conformance.suite import REVISIONS, Suite, cache_dir
from tests.e2e.gateways import missing

pytestmark = pytest.mark.node

LEAST: dict[tuple[str, str], int] = {
    ("server", "2025-06-18"): 27,
    ("server", "2025-11-25"): 30,
    ("server", "2026-07-28"): 37,
    ("client", "2025-11-25"): 4,
    ("client", "2026-07-28"): 7,
}
"""Scored scenarios by role and revision: those of the suite's requirements, for 2025-06-18 all, without signing in."""
SIGNS_IN: dict[str, str] = {
    "2025-11-25": """
        metadata-default metadata-var1 metadata-var2 metadata-var3 basic-cimd scope-from-www-authenticate
        scope-from-scopes-supported scope-omitted-when-undefined scope-step-up scope-retry-limit
        token-endpoint-auth-basic token-endpoint-auth-post token-endpoint-auth-none pre-registration""",
}
"""The scenarios of signing in, by name: whoever takes a newer suite sees what is new."""
SIGNS_IN["2026-07-28"] = f"""{SIGNS_IN["2025-11-25"]}
        resource-mismatch offline-access-scope offline-access-not-supported authorization-server-migration
        iss-supported iss-not-advertised iss-supported-missing iss-wrong-issuer iss-unexpected iss-normalized
        metadata-issuer-mismatch"""
SIGNED_IN_AT = "2026-07-28"
"""It has every scenario; `make conformance` runs those of 2025-11-25 as well."""


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """What each form's run finds. All that the selected tests need are begun at once, the longest first."""
    if shutil.which("npm") is None:
        missing("the conformance suite is installed with npm")
    suite, cache = Suite(cache_dir()), cache_dir()
    suite.ensure()
    fixture.forget_earlier(cache)
    folder = tmp_path_factory.mktemp("conformance")
    order, signing = Order(suite, folder, cache), Order(suite, folder, cache, (SIGNED_IN_AT,))
    marks = (item.get_closest_marker("form") for item in request.session.items)
    wanted = {mark.args[0] for mark in marks if mark is not None}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            form: pool.submit((signing if form == SIGNING else order).run, form)
            for form in (SIGNING, CLIENT, *FORMS)
            if form in wanted
        }


def _judge(run: Run, revision: str, least: int) -> None:
    mine = [outcome for outcome in run.outcomes if outcome.scenario.revision == revision]
    failing = [
        f"{outcome.scenario.name}: {check.id}: {check.message} ({outcome.folder})"
        for outcome in mine
        if outcome.scenario.scored and not outcome.passed
        for check in outcome.checks
        if check.status != "SUCCESS"
    ]
    assert not failing, "\n".join(failing)
    assert sum(outcome.scenario.scored and outcome.passed for outcome in mine) >= least


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("form", [pytest.param(form, marks=pytest.mark.form(form)) for form in FORMS])
def test_clients_of_a_revision_get_all_it_requires_from_a_server_of_either_era(
    found: dict[str, Future[Run]], form: str, revision: str
) -> None:
    run = found[form].result()
    assert not run.broken, run.broken
    _judge(run, revision, LEAST["server", revision])


@pytest.mark.form(CLIENT)
@pytest.mark.parametrize("revision", CLIENT_REVISIONS)
def test_servers_of_a_revision_get_all_it_requires_of_a_client(found: dict[str, Future[Run]], revision: str) -> None:
    run = found[CLIENT].result()
    assert not run.broken, run.broken
    _judge(run, revision, LEAST["client", revision])


@pytest.mark.form(SIGNING)
def test_the_gateway_signs_in_as_every_scenario_requires(found: dict[str, Future[Run]]) -> None:
    run = found[SIGNING].result()
    assert not run.broken, run.broken
    names = SIGNS_IN[SIGNED_IN_AT].split()
    _judge(run, SIGNED_IN_AT, len(names))
    assert [outcome.scenario.name.removeprefix(PREFIX) for outcome in run.outcomes if outcome.passed] == names


@pytest.mark.form(SIGNING)
@pytest.mark.parametrize("revision", CLIENT_REVISIONS)
def test_the_suite_has_the_scenarios_of_signing_in_that_are_named_here(
    found: dict[str, Future[Run]], revision: str
) -> None:
    listed = [scenario.name for scenario in Suite(cache_dir()).scenarios("client", revision)]
    signing = [name.removeprefix(PREFIX) for name in listed if name.startswith(PREFIX)]
    assert signing == SIGNS_IN[revision].split()


@pytest.mark.parametrize("form", [pytest.param(form, marks=pytest.mark.form(form)) for form in (CLIENT, *FORMS)])
def test_every_message_of_the_gateway_keeps_to_the_schema(found: dict[str, Future[Run]], form: str) -> None:
    run = found[form].result()
    assert run.violations == []
    assert run.messages > 100
