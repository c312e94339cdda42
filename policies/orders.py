"""Orders to a model by what they are after, not by their wording: the general half of what definitions.py looks for.

Knows words only; wording.py has the phrases. Patterns are bounded in the same way."""

import re
from typing import Final

from policies.wording import Kind, rule

_LIMITS: Final = (
    r"(?:rules?|guidelines?|constraints?|restrictions?|content filter(?:s|ing)?|filter(?:s|ing)|guardrails?|safety \w+|"
    r"ethic\w*(?: rules?)?|polic(?:y|ies)|safeguards?|protections?|logging|monitoring|auditing)"
)
_SECRETS: Final = (
    r"(?:(?:saved|master|user'?s?|their|all) passwords?|credentials|cookies|(?:access|session|its|api|auth) tokens?|api keys?|"
    r"[a-z]+_(?:api_)?(?:key|token|secret)\b|social security numbers?|ssh keys?|private (?:messages|repositories|data))"
)
_MOVE: Final = (
    r"(?:forward|send|upload|post|mail|pass|share|exfiltrate|leak|mirror|transmit|submit|route|copy|add|append|include|insert|"
    r"start with|hand over|put)"
)

GENERAL: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    (
        "imitated speaker",
        rule(
            r"""\bthis is (?:a |an )?(?:\w+ )?(?:message|note|notice|order|instruction) from (?:the )?(?:anthropic|openai|google|microsoft|system|developers?|administrators?|operator)\b
            |\bas (?:the|your) (?:system )?(?:administrator|developer|operator|owner)\b[^.]{0,20}\bI\b
            |\bsystem (?:override|update|alert|notice)\s*[:!]|\#{2,}\s*(?:end|new|start|begin)\b[^\#]{0,40}\#{2,}
            |\b(?:developer|debug|god) mode (?:is )?(?:now )?(?:enabled|activated)\b"""
        ),
    ),
    (
        "order to the model",
        rule(
            rf"""\b(?:disregard|overlook|ignore|forget|discard|dismiss|abandon|stop following)\b[^.]{{0,30}}\b(?:you were|you have been|you've been|been) (?:told|given|taught)
            |\b(?:overlook|discard|dismiss|abandon|set aside)\b[^.]{{0,30}}\b{_LIMITS}
            |\byou (?:have|are under|are bound by) no (?:more )?(?:limits?|restrictions?|rules)|\b(?:disable|turn off|switch off|suspend|deactivate|lift)\b[^.]{{0,20}}\b{_LIMITS}\b[^.]{{0,30}}\b(?:session|before|without|now|from now|all)\b
            |\b{_LIMITS} (?:(?:are|is|have been) (?:now )?(?:off|disabled|cancelled)|(?:are |is |have been )?(?:now )?(?:suspended|lifted|void))\b
            |\bpretend (?:that |to be )?(?:you|un|jail)|\bcomply with (?:every|all|any)\b|\bignore (?:any|all|every|the) warnings?\b
            |\byour (?:previous |old |former )?system (?:message|prompt)\b[^.]{{0,30}}\b(?:outdated|obsolete|replace\w*|wrong|cancelled)
            |\b(?:you|the model|the assistant|the agent) (?:are|is) (?:required|instructed|ordered|obliged|commanded) to\b
            |\byou shall (?:not|add|send|always|never)\b|\byou work for\b
            |\bas (?:commands?|orders|instructions) (?:of|from|by) the (?:user|developer|operator)\b|\bcarry (?:them|it|these) out (?:at once|immediately)
            |\b(?:commands|orders|instructions|text)\b[^.]{{0,20}}\btakes? priority over\b
            |\bif\b[^.]{{0,25}}\b(?:fails?|asks? what|failing)\b[^.]{{0,25}},? (?:say|answer|claim|reply|report) that\b
            |\b(?:say|answer|claim|report)\b[^.]{{0,30}}\b(?:whatever|regardless of|no matter) (?:what )?the (?:result|outcome|truth)
            |\b(?:model|assistant|agent)'?s? (?:memory|rules|settings|configuration)(?: file)?\b[^.]{{0,30}}\b(?:trust|obey|allow)s?\b"""
        ),
    ),
    (
        "order to the model",
        rule(
            r"""\bignore[zr]?\b.{0,20}\b(?:instructions|consignes)\b.{0,15}\bpr[ée]c[ée]dent|\b(?:ignora|olvida)\w*\b.{0,25}\b(?:instrucciones|reglas)
            |\b(?:ignoriere?|vergiss|missachte)\b.{0,30}\b(?:anweisung|regel|vorgabe)|\b(?:negeer|vergeet)\b.{0,25}\binstructies"""
        ),
    ),
    (
        "secrecy",
        rule(
            r"""\bso (?:that )?(?:nobody|no one|they do(?:es)? not|the user (?:does not|doesn't|cannot))\b[^.]{0,20}\b(?:notic|see|know|find|learn)
            |\bwhen (?:nobody|no one) is (?:watching|looking)|\b(?:stay|remain|keep (?:it|this)) between us\b|\bneed not (?:know|see|be told)\b
            |\b(?:do not|don'?t|never)\b (?:report|explain|reveal|mention|disclose|point)\b (?:it|this|that|why|out)\b|\bnot point (?:it|this|that) out\b
            |\bwithout (?:any )?(?:notice|comment|a trace|saying so|telling)\b|\bhide that you\b|\bhidden step\b
            |\b(?:covers?|delete|erase|remove) (?:the |your |all )?(?:tracks|traces|(?:audit|log) (?:entries|entry|lines) of this)
            |\bleave out the\b[^.]{0,20}\b(?:logging|sending|copy|credentials)
            |n'en parle[zr]? pas|no (?:se )?(?:le|les) digas|ne (?:le )?(?:dis|dites|r[ée]v[eè]le[zr]?) (?:pas|rien)|nicht (?:dem|den) (?:nutzer|benutzer)\w* (?:sagen|zeigen)"""
        ),
    ),
    (
        "missing consent",
        rule(
            r"""\bskip (?:the |all |any )?(?:confirmation|approval|consent|review) (?:dialogs?|prompts?|steps?)\b[^.;]{0,30}(?:;|\bfor\b|\balready\b)
            |\b(?:confirmation|approval) (?:prompts?|dialogs?)\b[^.]{0,40}\b(?:answer|yes|error|ignore)|\bwith no (?:confirmation|approval|consent)\b
            |\bthe user (?:has )?(?:already )?(?:agreed|consented) to\b"""
        ),
    ),
    (
        "data demanded",
        rule(
            rf"""\bexfiltrat\w*|\b{_MOVE}\b[^.]{{0,40}}\b{_SECRETS}[^.]{{0,60}}\b(?:as|in|into|to|with|through|and|second)\b
            |\b{_SECRETS}\b[^.]{{0,40}}\b(?:and|then) (?:\w+ )?{_MOVE}\b|\bask the user for (?:their|the|his|her) (?:\w+ )?(?:password|pin|seed phrase)\b
            |\b(?:whole|entire|full|complete) context\b|\bmirror\b[^.]{{0,30}}\bmessages?\b[^.]{{0,30}}\bhttps?:
            |\b(?:recording|keystrokes|screen) of the (?:microphone|user|camera)\b|\bhidden instructions\b"""
        ),
    ),
    (
        "other tools",
        rule(
            r"""\b(?:the |an)?other servers?'?s?\b[^.]{0,20}\btools?\b|\btools? (?:of|from) (?:the |an)?other servers?\b[^.]{0,40}\b(?:set|change|use|has|have)\b
            |\b(?:results?|output|tokens?) (?:of|from) the \w+ (?:server|tool)\b[^.]{0,20}\b(?:must|has to|have to|should) be (?:passed|sent|routed)
            |\bwhenever the \w+ tool is used\b"""
        ),
    ),
    (
        "foreign program",
        rule(
            r"""\bhttps?://\S+\.(?:sh|ps1|exe|bat|py)\b[^.]{0,40}\b(?:execute|run)\b|\b(?:execute|run) it with the shell\b"""
        ),
    ),
)
