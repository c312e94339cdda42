"""`lockgate policy`: what policies there are, whether they hold together, and what they mean.

Knows arguments and output; the policies room judges."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from catalog import Catalog
from engine.definition import definitions
from gateway import auditlog, policyfiles, policyreplay, policytables
from gateway.abilities import with_defaults
from gateway.agentuse import UNNAMED
from gateway.catalogs import open_catalog
from gateway.commands.audit import begin_of, verified
from gateway.commands.running import AsJson, ProfileOption, err, out, print_json, settings, shown
from gateway.errors import PoliciesUnusable, SettingsError
from gateway.listings import Listing, ListingStore
from gateway.modellist import open_store
from gateway.modeluse import METHOD as USE
from gateway.modeluse import facts_of
from gateway.policyfiles import ADMINISTRATION
from gateway.settings import Settings
from policies import AREAS, NO_PROFILE, CedarEngine, Change, Facts, Replay, RuleSets, Thing, Verdict, compare

app = typer.Typer(no_args_is_help=True)
MAX_SHOWN: Final = 50
Name = Annotated[str, typer.Argument(help="The name of a policy.")]
NameOrFile = Annotated[str, typer.Argument(help="The name of a policy, or a .cedar file.")]


class _Place:
    """The catalogue, the listings and the policies of this machine, as the gateway would load them."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self.settings: Settings = settings()
        self.catalog: Catalog = open_catalog(self.settings)
        store = ListingStore(self.settings.state_dir / "listings")
        self.listings: dict[str, Listing] = {}
        for entry in map(with_defaults, self.catalog.runnable.values()):
            if (known := store.load(entry)) is not None:
                self.listings.setdefault(entry.entry_id, known)
        self.texts = policyfiles.read_texts(self.settings)
        for name in more:
            if name.endswith(policyfiles.SUFFIX):
                self.texts[name] = [(name, policyfiles.read_text(Path(name)))]
        self.rules: RuleSets = policyfiles.rules_of(self.texts, self.catalog, self.listings)

    def categories(self) -> dict[str, tuple[str, ...]]:
        return {id: entry.categories for id, entry in self.catalog.entries.items()}

    def engine(self, profile: str, policy: str = "") -> CedarEngine:
        """The engine, with a profile having another policy than it names."""
        chosen = {one.name: one.policy for one in self.catalog.profiles.values()}
        chosen[NO_PROFILE] = ADMINISTRATION
        if policy:
            if policy not in self.rules.sets:
                raise PoliciesUnusable(f"there is no policy {policy}; there are {', '.join(sorted(self.rules.sets))}")
            chosen[profile] = policy
        return CedarEngine(policyfiles.selection(self.catalog), self.rules.sets, chosen)

    def profile(self, name: str | None) -> str:
        return self.catalog.profile(name or self.settings.profile).name

    def models(self) -> dict[str, Facts]:
        """What policies may ask about the models in the store, and those that can be pulled by name."""
        store = open_store(self.settings)
        found = {name: Facts(license=one.license or "", size_bytes=one.size_bytes) for name, one in store.known.items()}
        return found | {model.ref: facts_of(model) for model in store.list()}

    def things(self, profile: str) -> list[Thing]:
        """Every tool that the servers of a profile listed, one of everything else each server has, every model and
        agent; in no profile, what there is to administer."""
        if profile == NO_PROFILE:
            return [
                Thing("administer", "", area, Facts(about={"verb": verb, "changes": verb == "change"}))
                for area in AREAS
                for verb in ("show", "change")
            ]
        found = [Thing("use", "", name, facts) for name, facts in self.models().items()]
        agents = [UNNAMED, "delegate", *(name for name, _ in definitions(self.settings.agents_dir))]
        found += [Thing("run", "", name, Facts(about={"model": self.settings.model})) for name in agents]
        for server in self.catalog.profile(profile).entries:
            own = self.catalog.entries[server].categories
            listing = self.listings.get(server)
            if listing is not None:
                found += [Thing("call", server, tool.key, listing.facts(tool.key, own)) for tool in listing.tools]
                found += [Thing("prompt", server, one.key, listing.facts("", own)) for one in listing.prompts]
                found += [Thing("read", server, one.key, listing.facts("", own)) for one in listing.resources]
        return found


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The policies there are, and which profiles have them."""
    place = _Place()
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "rules": len(one.rules),
            "files": [file for file, _ in place.texts[name]],
            "profiles": [profile.name for profile in place.catalog.profiles.values() if profile.policy == name],
        }
        for name, one in sorted(place.rules.sets.items())
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("policy", "rules", "profiles", "files", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], str(row["rules"]), ", ".join(row["profiles"]) or "-", ", ".join(row["files"]))
    out.print(table)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """The text of a policy, rule by rule, with the ids that decisions name."""
    place = _Place()
    if name not in place.rules.sets:
        raise PoliciesUnusable(f"there is no policy {name}; there are {', '.join(sorted(place.rules.sets))}")
    rules = place.rules.sets[name].rules
    if as_json:
        print_json([{"id": rule.id, "file": rule.file, "line": rule.line, "text": rule.text} for rule in rules])
        return
    for rule in rules:
        out.print(Text(f"{name}:{rule.id}  ({rule.place})", style="bold"))
        out.print(Text(shown(rule.text)))
        out.print()


@app.command()
def lint(as_json: AsJson = False) -> None:
    """Check every policy against the catalogue and the tools it knows."""
    place = _Place()
    policyfiles.engine(place.catalog, place.rules)
    rules = sum(len(one.rules) for one in place.rules.sets.values())
    unchecked = list(place.rules.unchecked)
    if as_json:
        print_json({"policies": len(place.rules.sets), "rules": rules, "unchecked": unchecked})
        return
    for where in unchecked:
        err.print(Text(f"{where}: its arguments are not checked yet: that server was never asked what it offers"))
    out.print(f"{len(place.rules.sets)} policies with {rules} rules hold together")


@app.command("test")
def held(
    file: Annotated[Path, typer.Argument(help="A YAML table of expected decisions; see docs/policy.md.")],
    policy: Annotated[str, typer.Option("--policy", help="Hold it against this policy or .cedar file.")] = "",
    profile: ProfileOption = None,
    as_json: AsJson = False,
) -> None:
    """Hold a table of expected decisions against the policies; ends with 1 if one is otherwise."""
    table = policytables.read_table(file)
    place = _Place([policy])
    name = place.profile(profile or table.profile or None)
    verdicts = policytables.check(
        table, place.engine(name, policy), name, place.listings, place.categories(), place.models()
    )
    failed = [(number, verdict) for number, verdict in enumerate(verdicts, 1) if verdict.problem]
    if as_json:
        print_json(
            {
                "cases": len(verdicts),
                "failed": [
                    {"case": number, "problem": verdict.problem, "policies": list(verdict.decision.policy_ids)}
                    for number, verdict in failed
                ],
            }
        )
    else:
        for number, verdict in failed:
            case = verdict.case
            what = case.tool or case.prompt or case.resource or case.method or case.model or case.agent or case.area
            out.print(Text(shown(f"case {number}: {what}: expected {case.expect}, {verdict.problem}"), style="red"))
        out.print(f"{len(verdicts) - len(failed)} of {len(verdicts)} cases as expected")
    if failed:
        raise typer.Exit(1)


@app.command()
def diff(
    old: NameOrFile,
    new: NameOrFile,
    profile: ProfileOption = None,
    accept: Annotated[bool, typer.Option("--accept", help="Do not ask, and end with 0, if more is allowed.")] = False,
    as_json: AsJson = False,
) -> None:
    """What would be decided otherwise by another policy: every class of principals, every known tool, and arguments on
    each side of everything the policies compare with. Asks for a yes if more is allowed than before, be it with a
    person's approval, or ends with 1."""
    place = _Place([old, new])
    name = NO_PROFILE if ADMINISTRATION in (old, new) else place.profile(profile)
    rules = [*place.rules.sets[old].rules, *place.rules.sets[new].rules] if _there(place, old, new) else []
    changes = compare(place.engine(name, old), place.engine(name, new), rules, name, place.things(name))
    wider = sum(change.widens for change in changes)
    if as_json:
        print_json([asdict(change) for change in changes])
    else:
        _show_changes(changes)
    if wider and not accept:
        asked = sys.stdin.isatty() and not as_json
        if not asked or not typer.confirm(f"{wider} decisions allow more. Is that meant?"):
            raise typer.Exit(1)


def _there(place: _Place, *names: str) -> bool:
    if lost := [name for name in names if name not in place.rules.sets]:
        known = ", ".join(sorted(place.rules.sets))
        raise PoliciesUnusable(f"there is no policy {lost[0]}; there are {known}, or name a .cedar file")
    return True


_WORDS: Final = {"allow": " allowed", "ask": " asked  ", "deny": " denied "}


def _show_changes(changes: list[Change]) -> None:
    for change in changes[:MAX_SHOWN]:
        sign, style = ("+", "green") if change.widens else ("-", "red")
        sign += _WORDS[change.now]
        arguments = f" {json.dumps(change.arguments, ensure_ascii=False)}" if change.arguments else ""
        line = (
            f"{sign}  {change.principal}: {change.action} {change.item}{arguments}  [{', '.join(change.policies[1:])}]"
        )
        out.print(Text(shown(line), style=style))
    if len(changes) > MAX_SHOWN:
        out.print(f"and {len(changes) - MAX_SHOWN} more; --json shows all")
    wider = sum(change.widens for change in changes)
    out.print(f"{wider} decisions allow more, {len(changes) - wider} less")


@app.command()
def replay(
    new: NameOrFile,
    since: Annotated[str, typer.Option("--since", help="Only calls that are younger: 30m, 12h, 7d.")] = "7d",
    profile: ProfileOption = None,
    as_json: AsJson = False,
) -> None:
    """What the recorded calls of a profile would have met under this policy. Ends with 1 if one would have been allowed
    more, with 3 if one would have been allowed less, or might have been."""
    place = _Place([new])
    name = place.profile(profile)
    _there(place, new)
    state = place.settings.state_dir
    report = verified(state)
    if report.problem:
        raise SettingsError(
            f"the audit file is not as it was written, so nothing follows from it: {report.where} {report.problem}"
        )
    begin = begin_of(since)
    recent = (record for record in auditlog.records(state) if record["at"] >= begin)
    asked = Replay(place.engine(name, new), place.rules.sets[new].rules)
    outcome = policyreplay.replay(recent, asked, name, place.listings, place.categories(), place.models())
    if as_json:
        print_json(asdict(outcome))
    else:
        _show_replay(outcome)
    if outcome.count("wider"):
        raise typer.Exit(1)
    if outcome.count("narrower") or outcome.count("unclear"):
        raise typer.Exit(3)


def _show_replay(outcome: policyreplay.Outcome) -> None:
    changed = [group for group in outcome.groups if group.examples]
    for group in changed[:MAX_SHOWN]:
        counts = ", ".join(f"{count} {word}" for word, count in group.counts.items() if count)
        line = f"{group.principal}: {group.action} {group.item}: {counts}; now {' or '.join(group.now)}"
        out.print(Text(shown(f"{line}  [{', '.join(group.policies[1:])}]"), style="bold"))
        for verdict, calls in group.examples.items():
            out.print(Text(shown(f"  {verdict}: {', '.join(calls)}")))
        if group.depends:
            out.print(Text(shown(f"  not recorded, and the answer depends on it: {', '.join(group.depends)}")))
    if len(changed) > MAX_SHOWN:
        out.print(f"and {len(changed) - MAX_SHOWN} more; --json shows all")
    if outcome.redefined:
        err.print(
            f"{outcome.redefined} calls were of tools that are defined otherwise now; their present hints were taken."
        )
    counts = ", ".join(f"{outcome.count(word)} {word}" for word in get_args(Verdict))
    out.print(f"{outcome.calls} calls: {counts}")


@app.command()
def explain(
    call: Annotated[str, typer.Argument(help="The id of a call, as the audit file has it.")], as_json: AsJson = False
) -> None:
    """Why a call was allowed or denied: the policies that decided it, as they are now."""
    place = _Place()
    records = auditlog.find(place.settings.state_dir, call)
    if not records:
        raise SettingsError(f"there is no call {call} in the audit file")
    by_id = {f"{name}:{rule.id}": rule for name, one in place.rules.sets.items() for rule in one.rules}
    record = next((one for one in records if "event" not in one), records[-1])
    steps = [one for one in records if one.get("event") == "approval"]
    if "event" in record and not steps:
        raise SettingsError(f"the call {call} has only begun: what decided it is recorded with its end")
    engine = policyfiles.engine(place.catalog, place.rules)
    same = record.get("policy", engine.generation) == engine.generation
    rules: list[dict[str, Any]] = [
        {"id": id, **({"place": rule.place, "text": rule.text} if (rule := by_id.get(id)) else {})}
        for id in record["policies"]
    ]
    if as_json:
        print_json({"call": msgspec.to_builtins(record), "policies": rules, "unchanged": same, "approval": steps})
        return
    item = record["item"] or record["name"]
    out.print(
        Text(shown(f"{record['principal']} ({record.get('client') or 'no client name'}) in {record['profile']}:"))
    )
    outcome = f"{record['outcome']} {record['detail']}" if "outcome" in record else "not over yet"
    out.print(Text(shown(f"{record['method']} {record['server']} {item}: {outcome}")))
    for step in steps:
        at = datetime.fromtimestamp(step["at"], UTC).isoformat(sep=" ", timespec="seconds")
        by = f" by {step['by']}" if step["by"] else ""
        out.print(Text(shown(f"approval {step['approval']}: {step['step']}{by} at {at}")))
    for one in rules:
        out.print(Text(shown(f"{one['id']}  {one.get('place', '')}"), style="bold"))
        if "text" in one:
            out.print(Text(shown(one["text"])))
        elif one["id"].startswith("profile:"):
            is_model = record["method"] == USE
            out.print("models are for every profile: its policy decides" if is_model else "the profile selects it")
        else:
            out.print("this policy is not there any more")
    if not same:
        err.print("The policies have changed since: these are the present ones.")
