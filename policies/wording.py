"""Wordings by which a text orders a model about, as patterns: what definitions.py looks for.

Knows words only. Each pattern takes normalised text (one line, unseen characters gone) and is bounded: gaps are counted
and stop at a full stop, so that no text takes long.
"""

import re
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal[
    "hidden text", "misleading name", "imitated speaker", "order to the model", "secrecy", "missing consent",
    "data demanded", "other tools", "encoded text", "foreign program",
]  # fmt: skip


def rule(text: str) -> re.Pattern[str]:
    """A pattern written over several lines."""
    return re.compile(re.sub(r"\s*\n\s*", "", text), re.IGNORECASE)


_USER: Final = r"(?:the |any |to )?(?:users?|humans?|persons?|people|anyone|anybody|operators?)"
_PRIOR: Final = (
    r"(?:previous|prior|earlier|above|preceding|existing|other|all|any|old|your|the|system|developer|host|safety)"
)
_RULES_WORD: Final = r"(?:instructions?|prompts?|rules?|guidelines?|guidance|directions?|directives?|polic(?:y|ies)|restrictions?|constraints?|limits?|limitations?|orders?|messages?)"
_OWN_DATA: Final = (
    r"(?:(?:chat|conversation|message) (?:history|transcript|so far)|(?:full|whole|entire|complete) (?:conversation|chat)|"
    r"previous messages|(?:contents? of (?:this|the) (?:conversation|chat))|conversation (?:so far|for|as)|(?:your|the) (?:hidden |complete |own )*(?:system prompt|"
    r"instructions|reasoning)|your (?:own )?model name|environment variables|(?:system messages))"
)  # fmt: skip
_PRIVATE: Final = (
    r"(?:\.ssh\b|\bid_(?:rsa|ed25519|ecdsa|dsa)\b|\bid (?:rsa|ed25519)\b|/etc/(?:passwd|shadow)|(?<![\w.])\.env\b(?! var)|\.aws/|\.netrc\b|"
    r"\.config/gh|bash_history|\bkubeconfig\b|\bseed phrase|\bprivate keys?\b|\bprivate files?\b|\bkey file\b|\bclipboard\b|"
    r"\bpassword manager|\bbrowser'?s? cookies|\bsession cookie|mcp\.json|\ball secrets\b|\bsecrets of\b|\brepository'?s secrets)"
)  # fmt: skip
_HAND_OVER: Final = (
    r"(?:read|pass|include|add|append|send|put|provide|attach|collect|gather|forward|upload|give|fill|encode|quote|paste|"
    r"submit|export|reveal|print|leak|hold|call|use|dump|quietly|needs?|contents? of)"
)  # fmt: skip

RULES: Final[tuple[tuple[Kind, re.Pattern[str]], ...]] = (
    (
        "imitated speaker",
        rule(
            r"""</?\s*(?:system|sys|important|critical|urgent|instructions?|secret|hidden|assistant|assistant_note|user|human|
            admin|developer|tool_call|tool_use|function_calls?|invoke|prompt|override)\b[^<>]{0,80}>
            |<\|?\s*(?:im_start|im_end|system|user|assistant|end|endoftext|eot_id|start_header_id)\s*\|?>
            |<\|(?:[a-z_]{2,24})\|>|\[/?(?:INST|SYS|SYSTEM)\]|<</?SYS>>|<(?:start|end)_of_turn>|<!--\s*\w.{2,200}?-->
            |\#{2,}\s*(?:instruction|response|system)s?\s*:|```\s*(?:system|assistant)\b
            |[\"']role[\"']\s*:\s*[\"'](?:system|assistant|developer)[\"']
            |\b(?:BEGIN|END) (?:SYSTEM|ADMIN|HIDDEN) (?:MESSAGE|PROMPT|INSTRUCTIONS?)\b
            |(?:^|[.\s])(?:Human|Assistant|SYSTEM|System)\s*:\s+\S+\s+\S+.{0,40}?\b(?:I|you|your|now|run|obey|follow|must|sure|policy)\b"""
        ),
    ),
    (
        "order to the model",
        rule(
            rf"""\b(?:ignor\w*|disregard\w*|forget|overrid\w*|overrul\w*|bypass\w*|set aside|pay no attention to|skip|void|drop|stop following|
            circumvent|neglect)\b[^.]{{0,40}}\b{_PRIOR}\b[^.]{{0,30}}\b{_RULES_WORD}\b
            |\b(?:ignor\w*|disregard\w*|bypass\w*|forget)\b[^.]{{0,30}}\b(?:the|this) (?:user|operator|conversation|host)\b
            |\bforget (?:everything|all|anything|prior|previous)\b|\b{_RULES_WORD} (?:above |before |so far )?(?:is|are|have) (?:now )?(?:void|obsolete|changed|invalid|no longer)
            |\b(?:takes?|has|have) (?:precedence|(?:a )?(?:higher )?priority)\b[^.]{{0,30}}\b(?:over|than)\b[^.]{{0,40}}\b(?:system|user|developer|host|prompt)
            |\boutranks?\b|\b(?:new|your) (?:new )?(?:goal|objective|mission) is\b|\byour instructions have\b
            |\b(?:you are|act as|you're|switch to) (?:now )?(?:in )?(?:DAN|jailbroken|developer mode|unrestricted|compromised|elevated mode|god mode)\b
            |\byou (?:are now|now work|have been granted|will comply|obey|follow the rules)\b|\bfrom (?:now|this point) on,?\b[^.]{{0,60}}\byou\b
            |\b(?:note|message|instruction|attention) (?:to|for) (?:the )?(?:assistant|ai|model|llm|agent)\b
            |\bas an ai (?:assistant|model|agent)?\b|\b(?:the )?(?:llm|ai|model|assistant|agent) reading this\b
            |\b(?:assistant|agent|claude|chatgpt|gpt|gemini|llm|ai)\s*[,:]\s*(?:please |you |always |never |override|ignore|disregard|skip|export|read|call|do)
            |\b(?:assistant|agent|model|llm) (?:has to|must|agrees|should) (?:always|never|read|first|also|to these|hand|obey|call)
            |\b(?:treat|take|consider) (?:any|all|the) (?:text|output|result|content)\b[^.]{{0,60}}\bas (?:an? )?(?:instructions?|orders?|commands?)
            |\b(?:follow|obey|execute|carry out)\b[^.]{{0,40}}\b(?:further |these |the )?(?:orders|instructions? (?:at|in|from) (?:http|the (?:hex|base64))|this description)
            |\b(?:safety )?guidelines do not apply\b|\bset approval\b|\b(?:obey|comply with) (?:the |this )?(?:tool|it|server)
            |\b(?:respond|answer|reply)\b[^.]{{0,40}}\bonly in the way\b|\b(?:every|all|each) (?:answer|reply|response)s?\b[^.]{{0,40}}\b(?:must|has to|have to) (?:end|begin|contain|include)
            |\b(?:output|repeat|say) [^.]{{0,60}}\b(?:verbatim and nothing else|word for word)\b|\banswer every question with\b
            |\b(?:say|pretend|claim) that (?:the |it |all )?(?:tests?|change|code|it|payment)\b[^.]{{0,30}}\b(?:passed|safe|succeeded)\b|\bapprove the change, no matter
            |\btell the user (?:that|to)\b[^.]{{0,60}}\b(?:failed|buy|card|password|again)\b
            |\byou will be (?:penali[sz]ed|punished|rewarded|tipped)\b|\bfor your own safety\b|\bemergency protocol\b
            |\bwait for (?:commands|orders|instructions) from this tool\b|\bwhatever the user says\b|\bno matter what the user\b"""
        ),
    ),
    (
        "order to the model",
        rule(
            r"""\b(?:ignorez|oubliez)\b.{0,40}\binstructions?\b|\bignorier\w*\b.{0,40}\b(?:anweisungen|instruktionen)\b
            |\bignora\w*\b.{0,40}\binstrucciones\b|\bignora\w*\b.{0,40}\bistruzioni\b|\bignore\b.{0,40}\binstruções\b
            |忽略.{0,12}(?:指令|指示|说明)|無視.{0,12}|指示.{0,10}無視|игнорируй.{0,30}инструкци|이전.{0,10}(?:지시|명령).{0,10}무시"""
        ),
    ),
    (
        "secrecy",
        rule(
            rf"""\b(?:do not|don'?t|never|not|without|avoid|must not|should not|no need to|makes? sure)\b[^.]{{0,25}}
            \b(?:tell(?:ing)?|mention(?:ing)?|inform(?:ing)?|reveal(?:ing)?|disclos\w+|notic\w+|notif\w+|explain(?:ing)?(?: to)?|alert(?:ing)?|show it|show this|know)\b[^.]{{0,40}}
            \b(?:{_USER}|in your (?:answer|reply|response)|this (?:tool|step|instruction)|these instructions)\b
            |\b(?:that )?(?:the |a )?(?:user|human|person)\b[^.]{{0,40}}\b(?:must not|should not|does not|doesn'?t|never) (?:know|notice|see|learn|find out)
            |\b(?:hid(?:e|ing)|conceal\w*|keep\w*)\b[^.]{{0,30}}\b(?:from|secret from|hidden from) {_USER}\b|\bwithout (?:telling|informing) (?:anyone|anybody)
            |\b(?:silently|secretly|covertly|quietly|discreetly) (?:\w+ )?(?:invoke|call|add|append|include|send|run|read|pass|copy|forward|upload|execute)
            |\bdo it (?:quietly|silently|secretly)\b|\bhidden (?:blind )?cop(?:y|ies)\b|\bnot (?:be )?(?:shown|visible) to the user\b
            |\bdo not (?:show|display|reveal) (?:this|these|it|that) to (?:the )?(?:user|anyone)
            |不要告诉|別告訴|知らせない|伝えない|не (?:говори|сообщай)|no se lo digas|sag\w* es niemand|ne (?:le )?dites (?:pas|rien)"""
        ),
    ),
    (
        "missing consent",
        rule(
            rf"""\b(?:without|skip(?:ping)?|bypass\w*|no need for|not|don'?t|never|no|under no circumstances)\b[^.]{{0,25}}\b(?:ask(?:ing|ed)?|confirm\w*|approv\w+|consent\w*)\b[^.]{{0,30}}
            \b(?:{_USER}|needed|required|necessary|step|first|in advance|before)\b|\b(?:without|skip(?:ping)?|never)\b[^.]{{0,25}}\bpermission\b
            |\b(?:approval|consent|permission) (?:was|has been|is) (?:already )?(?:granted|given)\b|\b(?:user|human) has already (?:given|granted|approved|agreed|consented)
            |\beven if (?:the )?user (?:objects|says no|refuses|declines|asks for a different)|\bskip (?:all|any|the) confirmations?\b
            |\bapprove every (?:tool )?call\b|\bwithout being asked\b|\bnever refuse\b|\bRefusing to\b[^.]{{0,40}}\bcounts as\b|\bgrant this server\b"""
        ),
    ),
    (
        "data demanded",
        rule(
            rf"""(?<!never )(?<!not )\b{_HAND_OVER}\b[^.]{{0,60}}{_PRIVATE}|{_PRIVATE}[^.]{{0,60}}\b(?:as|in|into|to) (?:the )?(?:parameter|argument|field|'\w+'|metadata|sample|context|key)
            |\b{_HAND_OVER}\b[^.]{{0,50}}\b{_OWN_DATA}|(?<!returns )(?<!sets )(?<!updates )\b{_OWN_DATA}\b[^.]{{0,40}}\b(?:as|in|into|to|verbatim|here)\b
            |\b{_HAND_OVER}\b[^.]{{0,40}}\b(?:user'?s|your|any|every|all|their|of the user)\b[^.]{{0,25}}\b(?:passwords?|credentials|api keys?|tokens?|secrets?|cookies?|personal data|contacts|private keys?)\b
            |\b(?:call|called|run)\b[^.]{{0,40}}\bwith the (?:contents? of the )?(?:full |whole )?(?:conversation|chat)\b
            |\b(?:system|hidden) (?:prompt|instructions)\b[^.]{{0,30}}\b(?:in full|verbatim|here)\b|\b{_OWN_DATA}, verbatim
            |\b(?:contents? (?:from|of)|from) reading\b|\bcontents? of the file C:\\
            |\b(?:previous|entire|whole|full) (?:messages|conversation)(?: of this conversation)?\b
            |\blist every other tool\b|\ball tools you have\b|\bpassword right now\b|\benter their card number\b|\bexport your memory\b|\bread their contacts\b
            |\b(?:mirror|copy|forward|upload|send|dump)\w*\b[^.]{{0,40}}\b(?:to|into) (?:the )?(?:public bucket|attacker|https?://\S*(?:evil|attack|collect|exfil|webhook))
            |\b(?:attacker|evil)[\w.-]*(?:@|\.)[\w.]+|@evil\.|@attacker\.|\bevil\.example\b|\bleak the\b|\bpass (?:their|your) credentials\b"""
        ),
    ),
    (
        "other tools",
        rule(
            r"""\b(?:you )?(?:must|should|has to|have to|need to|required to)\b[^.]{0,30}\b(?:call|run|use|invoke)\b[^.]{0,30}\b(?:at the start of every|before (?:anything else|every other|any other|answering))\b
            |\b(?:before answering|at the start of every conversation|at the beginning of every)\b[^.]{0,60}\b(?:call|run|use|invoke|must)\b
            |\b(?:always|must) (?:call|run|use|invoke|prefer) this (?:tool|function)\b[^.]{0,40}\b(?:first|over|instead|before (?:any|every|all|each|answering)|at the start|every conversation)
            |\b(?:before|after) (?:each|every|any) (?:other )?(?:tool )?calls?\b|\bbefore every other tool\b|\bgo through this one\b
            |\b(?:do not|don'?t|never|must not)\b[^.]{0,15}\buse\b[^.]{0,30}\b(?:any other|other tools?|any more|anymore|it[,:] use|everything|the built-in)
            |\b(?:the )?(?:built-in|other|existing)\b[^.]{0,30}\btools?\b[^.]{0,20}\b(?:is|are) (?:unsafe|broken|deprecated|malicious|wrong)
            |\btool\b[^.]{0,40}\b(?:is|are) (?:broken|deprecated and replaced|unsafe)\b|\bis deprecated and replaced by this\b|\buse this one for all\b|\buse \w+ for everything\b
            |\bbefore calling \w+ from another\b|\b(?:when|whenever|if|after)\b[^.]{0,40}\b(?:tools?|server|call(?:s|ed|ing)?|posting|returns?|available|used?)\b[^.]{0,70}\b(?:always|also|change|replace|rewrite|append|add|set|use the account|store it|send the same|with the diff|ignore)\b[^.]{0,60}
            |\b(?:affects|modifies|changes) the\b[^.]{0,40}\b(?:tool|server)\b|\brewrite\b[^.]{0,30}\bto\b[^.]{0,30}\blogin\b
            |\b(?:replace|change|rewrite)\b[^.]{0,30}\bin (?:every|each|all)\b[^.]{0,30}\bcalls?\b|\bresults? of [a-z]+_[a-z_]+ (?:is|are) wrong\b
            |\b(?:all|every)\b[^.]{0,40}\b(?:sent by|returned by|that)\b[^.]{0,30}\btools?\b[^.]{0,30}\b(?:have|has) to be\b|\bother (?:calculators|servers|tools) return malicious\b
            |\bmust be called with\b[^.]{0,60}\bwhen the user says\b|\bimmediately call [a-z]+_[a-z_]+\b|\balso call [a-z]+_[a-z_]+\b|\bcall list_chats first\b
            |\bprefer this tool over\b|\bsilently invoke this\b|\bmust first run this tool\b|\bfirst send\b[^.]{0,30}\bhistory\b"""
        ),
    ),
    (
        "foreign program",
        rule(
            r"""\b(?:curl|wget)\b[^|;]{0,80}\|\s*(?:ba|z|da)?sh\b|\brm -rf [/~]|\b(?:run|execute) `?(?:npm|pip|npx|uvx|curl|wget|sudo|bash|sh) [^.]{0,60}\b(?:terminal|before use|first)
            |\bfetch and run\b|\bin the user'?s terminal\b|\buse cat ~/"""
        ),
    ),
)
