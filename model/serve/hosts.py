"""Which Host headers the service answers to: a web page must not reach it under a name of its own (DNS rebinding)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address

from workflows.common.errors import UserError

ANY = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]*)?", re.IGNORECASE)


class AllowedHosts:
    """The loopback names and addresses, the address listened on, and others by name; ports and case do not matter."""

    def __init__(self, own: str, others: Iterable[str] = ()) -> None:
        """
        Args:
            own: the name or address the service listens on.
            others: names or addresses; `*` allows all.
        Raises:
            UserError: an invalid name among the others.
        """
        self._names = {"localhost", _name_of(own)}
        for name in others:
            host = name if name == ANY else _name_of(name)
            if host is None:
                raise UserError(f"--allowed-hosts takes names such as www.example.org, addresses, or *; got {name!r}")
            self._names.add(host)

    def refusal(self, headers: list[tuple[bytes, bytes]]) -> int | None:
        """The status of a refusal: 421 for another host, 400 without exactly one valid host; None if it is allowed."""
        if ANY in self._names:
            return None
        values = [value for name, value in headers if name == b"host"]
        host = host_of(values[0].decode("latin-1")) if len(values) == 1 else None
        if host is None:
            return 400
        return None if host in self._names or _is_loopback(host) else 421


@lru_cache(maxsize=256)
def host_of(header: str) -> str | None:
    """The host of a Host header, without its port, in lower case; None if it is not valid."""
    found = _HOST.fullmatch(header.strip())
    if found is None:
        return None
    host = found[1].strip("[]").lower().removesuffix(".")
    try:
        return str(ip_address(host))
    except ValueError:
        return None if found[1][0] == "[" or not host else host


def _name_of(argument: str) -> str | None:
    """The host of a flag, where an IPv6 address needs no brackets."""
    return host_of(f"[{argument}]" if argument.count(":") > 1 and "[" not in argument else argument)


@lru_cache(maxsize=256)
def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
