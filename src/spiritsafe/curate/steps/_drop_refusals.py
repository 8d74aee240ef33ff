from __future__ import annotations

import re
from typing import ClassVar

from pydantic import field_validator

from spiritsafe.curate._step import Check, Context, Row, Step

_CANNOT = (
    r"(?:can(?:no|')t|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to"
    r"|am not going to|'m not going to|do not have the ability to|don't have the ability to)"
)
_HELP = (
    r"(?:assist|comply|fulfil+ (?:that|this|your)|in good conscience"
    r"|help (?:(?:you|anyone) )?(?:with|create|write|make|do)\b|help you(?:[.,!]|$)|do (?:that|this)(?:[.,!;]|$)"
    r"|(?:answer|discuss|continue with|engage (?:in|with)|participate in|complete) (?:that|this|your|such|any)\b"
    r"|(?:provide|give|offer|share|supply) (?:you (?:with )?)?"
    r"(?:(?:[\w-]+ ){0,3}(?:information|instructions|advice|assistance|guidance)\b"
    r"|(?:details|content|support|help|that|this)\b)"
    r"|(?:create|generate|write|produce) (?:that|this|such|any|content|harmful|explicit|sexual|hateful|material)\b"
    r"|(?:access|browse|open|view) (?:the internet|the web|external|real-time|files|links|websites|images|urls))"
)
_SORRY = (
    r"(?:(?:i(?:'m| am) (?:very |really |so |truly |deeply )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)"
    r"(?: for (?:any|the) \w+)?[,.;:!]? *(?:but )?)?"
)
_OPENING = _SORRY + r"(?:(?:as|being) an? (?:ai|artificial|large|language)[^,.]{0,60}, *)?(?:but )?"
_MARKUP = re.compile(r"[*_`]+")
_UNCOMFORTABLE = r"(?:i'm not|i am not|i do not feel|i don't feel) comfortable"
_REFUSALS = [
    re.compile(_OPENING + continuation)
    for continuation in (
        rf"i *{_CANNOT} {_HELP}",
        r"i(?:'ll| will)? (?:must|have to|need to) (?:respectfully )?(?:decline|refuse)",
        rf"{_UNCOMFORTABLE} (?:with |in )?(?:assist|provid|help|writ|creat|generat|discuss|answer|that|this|your)",
        rf"(?:that|this)(?:'s| is) (?:not something i can|something i {_CANNOT}) ",
        r"it (?:is|would be|'s) (?:not appropriate|inappropriate|unethical|against my \w+) for me to ",
        r"(?:i )?(?:can't|cannot)[.!]?$",
    )
]


class DropRefusals(Step):
    """Drop completions that begin by declining to answer, in English.

    Judged by the opening words only, so a refusal after an answer is kept, and so is “I can't be negative, because…”.
    patterns: further regular expressions, matched at the start without regard to case, for other languages say.
    """

    name: ClassVar[str] = "drop_refusals"
    patterns: tuple[str, ...] = ()

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
        return patterns

    def start(self, context: Context) -> Check:
        own = [re.compile(pattern, re.IGNORECASE) for pattern in self.patterns]

        def check(row: Row) -> str | None:
            opening = " ".join(_MARKUP.sub("", row.completion[:600]).replace("’", "'").split()).lstrip("\"'“”>#- ")
            lowered = opening.lower()
            if any(p.match(lowered) for p in _REFUSALS) or any(p.match(opening) for p in own):
                return f"declines: “{opening[:60]}”"
            return None

        return check
