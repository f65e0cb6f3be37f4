"""Regular expressions of strangers' files, which must not keep this program busy for ever.

Python's `re` tries one way through a name after the other. Of a repetition without a bound there are as many as the
name has characters, of alternatives as many as these; of what stands side by side all combinations, and of a choice
that is repeated, such as `(a+)+` or `(a|a)*`, more than can ever be tried: those are refused, and of others the ways
are counted before any is tried.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

from minillm.guard.screen import shown

try:
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as sre
    import sre_parse as parser

MAX_LENGTH = 2000
MAX_WAYS = 2**18  # of all patterns of a file through one name
CHARACTERS = 45.0  # ways of a repetition without a bound, in names of about so many
REPEATS = tuple(getattr(sre, name) for name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") if hasattr(sre, name))
REMEDY = "name the modules instead"


@functools.lru_cache(2**12)
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern that has been checked."""
    return re.compile(pattern)


def check(what: str, patterns: Iterable[Any]) -> None:
    """Raise ValueError, which says of `what` they are, for patterns that are none, and for those that may take long."""
    total = 0.0
    for pattern in patterns:
        if not isinstance(pattern, str) or len(pattern) > MAX_LENGTH:
            raise ValueError(f"{what} has {shown(pattern)}; a pattern is a text of at most {MAX_LENGTH} characters")
        try:
            total += _ways(parser.parse(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{what} has {shown(pattern)}, which is no regular expression: {error}") from None
        if total > MAX_WAYS:
            raise ValueError(f"{what} has {shown(pattern)}, which could take for ever to match; {REMEDY}")


def _ways(items: Any) -> float:
    """How many ways there may be through a pattern; infinitely many where a choice is repeated."""
    found = 1.0
    for code, value in items:
        if code in REPEATS:
            least, most, body = value
            inner = _ways(body)
            count = min(float(most - least + 1), CHARACTERS)
            found *= count * inner if most <= 1 or inner == 1 else math.inf
        elif code is sre.BRANCH:
            found *= sum(_ways(each) for each in value[1])
        elif code is sre.GROUPREF_EXISTS:
            found *= sum(_ways(each) for each in value[1:] if each is not None)
        elif code in (sre.SUBPATTERN, sre.ASSERT, sre.ASSERT_NOT):
            found *= _ways(value[-1])
        elif code is getattr(sre, "ATOMIC_GROUP", None):
            found *= _ways(value)
    return found
