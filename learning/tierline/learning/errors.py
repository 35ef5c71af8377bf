"""Errors that only learning raises; each refines one of `core.errors`.

LinkTimeout
└── Deadlock      exit 8    every node waits for another
ConfigError
└── RuleError     exit 2    a rule asked for something outside the contract
"""

from __future__ import annotations

from tierline.core.errors import ConfigError, LinkTimeout


class Deadlock(LinkTimeout):
    """Nothing is under way and somebody still waits; the message names who waits for what."""

    code = "deadlock"


class RuleError(ConfigError):
    """A rule broke the contract: a foreign node, a tag used twice, sums that do not fit together."""

    code = "rule"
