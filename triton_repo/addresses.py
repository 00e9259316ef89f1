"""Addresses and ports that a server is to listen on: resolved, compared and tried before anything starts."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack

from nemo_diffgemma.errors import FieldError, require

_MOST_PORT = 2**16 - 1


def resolved(option: str, host: str) -> str:
    """The address, in numbers, of a name or an address of this machine; of a name's several the first of IPv4.

    In numbers, since what starts later may know no names: tritonserver's HTTP takes ``localhost`` for 255.255.255.255.

    Raises:
        FieldError: naming ``option``, for a name that is not known and an address that this machine does not have.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        # An empty name, or one with a zone or in the encoding of names, would be something else to each server.
        if not bare or "%" in bare or not bare.isascii():
            raise OSError("it is not an address or a name in ASCII, without a zone")
        found = socket.getaddrinfo(bare, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = min(((each[0], str(each[4][0])) for each in found), key=lambda each: each[0])
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except (OSError, UnicodeError) as error:
        raise FieldError(
            field=option,
            value=host,
            allowed=f"an address of this machine, or a name of one ({getattr(error, 'strerror', None) or error})",
            fix=f"pass {option} 127.0.0.1 for this machine alone, 0.0.0.0 or :: for others, too",
        ) from error
    return address


def is_ipv6(address: str) -> bool:
    """Whether an address in numbers is of IPv6."""
    return ipaddress.ip_address(address).version == 6


def at(address: str, port: int) -> str:
    """Address and port as in a URL."""
    return f"[{address}]:{port}" if is_ipv6(address) else f"{address}:{port}"


def bound(option: str, address: str, port: int) -> socket.socket:
    """A socket that has this address and port, any free one for 0, and does not listen yet.

    Raises:
        FieldError: naming ``option``, when it cannot be had.
    """
    _check_port(option, port)
    found = socket.socket(socket.AF_INET6 if is_ipv6(address) else socket.AF_INET)
    try:
        if port:
            # As a server does: a port whose last connection is only winding down is free. For 0 the system could choose
            # one that another socket has.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
    except OSError as error:
        found.close()
        fix = f"stop what listens there, or pass {option} 0 to take any free port"
        allowed = f"a free port on {address} ({error.strerror})"
        raise FieldError(field=option, value=port, allowed=allowed, fix=fix) from error
    return found


def free_ports(wanted: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """A port for each option, which can be listened on; all different.

    Args:
        wanted: option -> address and port, 0 for any free one.

    Raises:
        FieldError: naming the option whose port cannot be had.
    """
    check_different({option: port for option, (_, port) in wanted.items()})
    with ExitStack() as held:  # all of them, so that none is found twice
        sockets = {option: held.enter_context(bound(option, *where)) for option, where in wanted.items()}
        return {option: int(each.getsockname()[1]) for option, each in sockets.items()}


def check_different(ports: Mapping[str, int]) -> None:
    """Raise :class:`FieldError` for a number that is no port, and for one that two options name."""
    seen: dict[int, str] = {}
    for option, port in ports.items():
        _check_port(option, port)
        other = seen.setdefault(port, option) if port else option
        fix = f"pass another port, or {option} 0 to take any free one"
        require(other == option, field=option, value=port, allowed=f"another port than {other}'s", fix=fix)


def unproxied(*hosts: str) -> dict[str, str]:
    """Variables for a process that is to reach these hosts and this machine without a proxy.

    Args:
        hosts: addresses in numbers.
    """
    said = [name for variable in ("no_proxy", "NO_PROXY") for name in os.environ.get(variable, "").split(",")]
    names = [*said, "localhost", "127.0.0.1", "::1", *hosts]
    value = ",".join(dict.fromkeys(name.strip() for name in names if name.strip()))
    return {"no_proxy": value, "NO_PROXY": value}


def _check_port(option: str, port: int) -> None:
    allowed, fix = f"a port from 1 to {_MOST_PORT}, or 0 for any free one", f"pass {option} 0"
    require(0 <= port <= _MOST_PORT, field=option, value=port, allowed=allowed, fix=fix)
