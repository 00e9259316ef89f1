"""The formats of JSON Schema that a string can be bound to, as regular expressions of the whole text."""

from __future__ import annotations

_DAY = (
    r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"  # months of 31 days
    r"|(0[469]|11)-(0[1-9]|[12]\d|30)"  # of 30
    r"|02-(0[1-9]|1\d|2[0-8]))"  # February but for its 29th
)
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = rf"({_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_GROUP = r"[0-9a-fA-F]{1,4}"
_TAIL = rf"({_GROUP}:{_GROUP}|{_IPV4})"  # the last 32 bits of an address
_IPV6 = "|".join(
    [rf"({_GROUP}:){{6}}{_TAIL}"]
    # `before` groups at most, then two colons, then `behind` groups
    + [
        rf"(({_GROUP}:){{0,{before - 1}}}{_GROUP})?::({_GROUP}:){{{behind - 2}}}{_TAIL}"
        if before
        else rf"::({_GROUP}:){{{behind - 2}}}{_TAIL}"
        for before, behind in ((0, 7), (1, 6), (2, 5), (3, 4), (4, 3), (5, 2))
    ]
    + [rf"(({_GROUP}:){{0,5}}{_GROUP})?::{_GROUP}", rf"(({_GROUP}:){{0,6}}{_GROUP})?::"]
)
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PATH = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"  # a character of a path
_HOST = r"([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_PERIOD = r"(\d+H(\d+M)?(\d+S)?|\d+M(\d+S)?|\d+S)"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": rf"{_DATE}T{_TIME}",
    "duration": rf"P(\d+W|(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)(T{_PERIOD})?|T{_PERIOD})",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "email": rf"{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uri": (
        rf"[A-Za-z][A-Za-z0-9+.-]*:"
        rf"(//({_HOST}*@)?{_HOST}*(:\d*)?(/{_PATH}*)*|/({_PATH}+(/{_PATH}*)*)?|{_PATH}+(/{_PATH}*)*)"
        rf"(\?({_PATH}|[/?])*)?(#({_PATH}|[/?])*)?"
    ),
}
