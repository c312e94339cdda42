"""Secrets by the look of them: keys and tokens of the forms that their issuers gave them, private keys, passwords in
addresses and assignments.

Each pattern has needles: texts without one of them hold no such secret, which one pass over them tells."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ahocorasick_rs import AhoCorasick, Implementation


@dataclass(frozen=True, slots=True)
class Pattern:
    """One kind of text, to be matched where one of its needles begins. Where `regex` has the group `it`, that alone is
    what was looked for."""

    kind: str
    needles: tuple[str, ...]
    regex: re.Pattern[str]
    check: Callable[[str], bool] | None = None
    before: str | None = ""
    """What may not stand before it beside ASCII letters and digits; None: anything may."""

    def at(self, text: str, start: int) -> tuple[int, int, str] | None:
        """From, to and kind of what begins there, if it is one."""
        if self.before is not None and start and _joins(text[start - 1], self.before):
            return None
        if (found := self.regex.match(text, start)) is None:
            return None
        start, end = found.span("it" if self.regex.groups and "it" in self.regex.groupindex else 0)
        if self.check is not None and not self.check(text[start:end]):
            return None
        return start, end, self.kind


class Patterns:
    """Many patterns, all searched for in one go."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        needles: dict[str, list[Pattern]] = {}
        for pattern in patterns:
            for needle in pattern.needles:
                needles.setdefault(needle, []).append(pattern)
        self.needles = tuple(needles)
        self._by_needle = [tuple(those) for those in needles.values()]
        # The automaton with a state for each prefix is the largest and four times as fast as the default.
        self._search = AhoCorasick(list(needles), implementation=Implementation.DFA)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Each place: from, to, kind. Places may overlap."""
        by_needle = self._by_needle
        for number, start, _ in self._search.find_matches_as_indexes(text, overlapping=True):
            for pattern in by_needle[number]:
                if (found := pattern.at(text, start)) is not None:
                    yield found


def _joins(c: str, before: str) -> bool:
    return (c.isascii() and c.isalnum()) or c in before


def _pattern(
    kind: str, needles: str, regex: str, check: Callable[[str], bool] | None = None, before: str | None = ""
) -> Pattern:
    return Pattern(kind, tuple(needles.split()), re.compile(regex), check, before)


_PLACEHOLDER: Final = re.compile(
    r"[<>{}$()\[\]*]|\.\.\.|xxx|example|sample|placeholder|changeme|change_me|your[_-]|dummy|redacted|none|null|test",
    re.IGNORECASE,
)
_CODE: Final = re.compile(
    r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[a-z]+(?:[_-][a-z]+)*|[A-Z]+(?:_[A-Z]+)*|[A-Z]?[a-z]+(?:[A-Z][a-z]+)+"
)
"""Names and attributes: what stands behind `password =` in a program."""


_LONG: Final = re.compile(r"(?=[A-Za-z0-9]*[0-9][A-Za-z0-9]*[0-9])[A-Za-z0-9]{20,}")
"""No name is like that."""
_REPEATED: Final = re.compile(r"xxx|XXX|\*\*\*|\.\.\.|[<>]")


def _entropy(text: str) -> float:
    """Bits for each character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _is_varied_by(text: str, bits: float) -> bool:
    """Whether each character has so many bits. Most often the number of different ones says so without counting
    each: they have the fewest bits where all that come twice are the same."""
    length, again = len(text), len(text) - len(set(text)) + 1
    return math.log2(length) - again * math.log2(again) / length >= bits or _entropy(text) >= bits


def _is_real(value: str) -> bool:
    """Whether it could be a password: no placeholder, no name of a program, not one character again and again."""
    if _PLACEHOLDER.search(value) or len(set(value)) < 5:
        return False
    return _CODE.fullmatch(value) is None or _LONG.search(value) is not None


def _is_random(value: str) -> bool:
    if not _is_real(value):
        return False
    if any(c.isdigit() for c in value) and any(c.isalpha() for c in value):
        return _is_varied_by(value, 2.8)
    has_cases = any(c.islower() for c in value) and any(c.isupper() for c in value)
    return has_cases and len(value) >= 20 and _is_varied_by(value, 3.5) and _CODE.fullmatch(value) is None


def _varied(value: str) -> bool:
    return len(set(value)) >= 8 and not _REPEATED.search(value)


_END: Final = r"(?![A-Za-z0-9])"

_ALL: Final[tuple[Pattern, ...]] = (
    _pattern(
        "private key", "-----BEGIN",
        r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[\s\S]{0,20000}?-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\]*)",
        before=None,
    ),
    _pattern("AWS key", "AKIA ASIA", r"A[KS]IA[A-Z2-7]{16}" + _END, lambda found: len(set(found)) >= 8),
    _pattern(
        "AWS secret", "ecret ECRET",
        r"(?i:ecret[_-]?(?:access[_-]?)?key)[\"']?\s*[:=]\s*[\"']?(?P<it>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])", _varied,
        before=None,
    ),
    _pattern("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[opusr]_[A-Za-z0-9]{36,255}" + _END, _varied),
    _pattern("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,255}", _varied),
    _pattern("GitLab token", "glpat- gldt- glrt-", r"gl(?:pat|dt|rt)-[A-Za-z0-9_-]{20,}", _varied),
    _pattern("Slack token", "xox xapp-", r"(?:xox[abeprs]|xapp)-[A-Za-z0-9-]{20,}", _varied),
    _pattern("Slack hook", "hooks.slack.com", r"hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}"),
    _pattern("model provider key", "sk-", r"sk-(?:[a-z]+[0-9]*-)*[A-Za-z0-9_-]{32,}", _is_random),
    _pattern(
        "Stripe key", "sk_live_ sk_test_ rk_live_ rk_test_ whsec_",
        r"(?:[rs]k_(?:live|test)|whsec)_[A-Za-z0-9]{16,}", _varied,
    ),
    _pattern("Google key", "AIza", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", _varied),
    _pattern("Google token", "ya29. GOCSPX-", r"(?:ya29\.|GOCSPX-)[A-Za-z0-9_-]{20,}", _varied),
    _pattern("web token", "eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"),
    _pattern("SendGrid key", "SG.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", _varied),
    _pattern("npm token", "npm_", r"npm_[A-Za-z0-9]{36}" + _END, _is_random),
    _pattern("PyPI token", "pypi-AgE", r"pypi-AgE[A-Za-z0-9_-]{40,}", _varied),
    _pattern("Hugging Face token", "hf_", r"hf_[A-Za-z0-9]{30,}" + _END, _varied),
    _pattern("DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", r"do[opr]_v1_[0-9a-f]{64}" + _END, _varied),
    _pattern("Shopify token", "shpat_ shpss_ shpca_", r"shp(?:at|ss|ca)_[0-9a-fA-F]{32}" + _END, _varied),
    _pattern(
        "Telegram token", ":AA", r"(?<=[0-9]{8})(?P<it>:AA[A-Za-z0-9_-]{32,34})(?![A-Za-z0-9_-])", _varied, before=None
    ),
    _pattern(
        "Azure key", "AccountKey= SharedAccessKey=",
        r"(?:Account|SharedAccess)Key=(?P<it>[A-Za-z0-9+/]{40,88}={0,2})", _varied,
    ),
    _pattern("age key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    _pattern("Vault token", "hvs. hvb.", r"hv[sb]\.[A-Za-z0-9_-]{24,}", _varied),
    _pattern("Databricks token", "dapi", r"dapi[0-9a-f]{32}" + _END, _varied),
    _pattern("Grafana token", "glsa_ glc_", r"gl(?:sa|c)_[A-Za-z0-9_+/=]{32,}", _varied),
    _pattern("Notion token", "ntn_", r"ntn_[A-Za-z0-9]{40,}", _varied),
    _pattern("Linear key", "lin_api_ lin_oauth_", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}", _varied),
    _pattern("Postman key", "PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}", _varied),
    _pattern("authorization header", "Bearer bearer", r"[Bb]earer +(?P<it>[A-Za-z0-9._~+/-]{20,}=*)", _is_random),
    _pattern(
        "authorization header", "uthorization UTHORIZATION",
        r"(?i:uthorization)[\"']?\s*[:=]\s*[\"']?[Bb]asic +(?P<it>[A-Za-z0-9+/]{12,}={0,2})", before=None,
    ),
    _pattern(
        "password in an address", "://",
        r"://[^/\s:@\"'<>?#]{0,64}:(?P<it>[^/\s@\"'<>]{4,256})@[A-Za-z0-9\[]", _is_real, before=None,
    ),
    _pattern(
        "assigned secret", "assw ASSW ecret ECRET oken OKEN pi_key PI_KEY pikey piKey PIKEY pi-key PI-KEY redential",
        r"(?i:assword|asswd|asswort|ecret|oken|pi[_-]?key|redential)s?(?:_?(?i:key))?[\"']?\s{0,3}(?::=|=>|[:=])\s{0,3}"
        r"[\"']?(?P<it>[^\s\"',;&<>(){}\[\]`\\]{10,200})",
        _is_random, before=None,
    ),
)  # fmt: skip
"""Kinds of secrets, each with its marks. A pattern that begins within a word (`ecret`) is so for both cases of its
first letter."""
PATTERNS: Final = Patterns(_ALL)
