"""Pictures by URL, where `--allow-url` lets them be named so: https, public addresses, few redirects, bounded.

A name is resolved here, every address that it has is checked, and the connection goes to these addresses and no others: what
a second look-up would say does not matter. The same at each redirect.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from ssl import SSLContext
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from jobs.serving.refusals import Refusal

REDIRECTS = 3
_BLOCK = 1 << 16
_WRAPPING = [ipaddress.ip_network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]  # IPv4 within
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also through what IPv6 wraps around IPv4."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None or address.teredo is not None or any(address in each for each in _WRAPPING):
            return False
        if address.is_site_local:  # deprecated, and still somebody's inside
            return False
    return address.is_global and not address.is_multicast


class _Checked(AbstractResolver):
    """Answers with the addresses that were checked."""

    def __init__(self, addresses: list[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        return None


class Fetcher:
    """Fetches pictures from outside.

    Args:
        max_bytes: largest file.
        seconds: time limit of one fetch, redirects included.
        allowed: which addresses may be spoken to.
        ports: which ports.
        tls: certificates that are trusted; None: the system's.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        seconds: float,
        allowed: Callable[[Address], bool] = is_public,
        ports: frozenset[int] = frozenset({443}),
        tls: SSLContext | None = None,
    ) -> None:
        self._max_bytes, self._seconds, self._allowed, self._ports, self._tls = max_bytes, seconds, allowed, ports, tls

    async def fetch(self, url: str) -> bytes:
        """The bytes at an https:// URL.

        Raises:
            Refusal: the URL may not be fetched, or gives nothing that can be used.
        """
        try:
            async with asyncio.timeout(self._seconds):
                for _ in range(REDIRECTS + 1):
                    found = await self._get(url)
                    if isinstance(found, bytes):
                        return found
                    url = found
        except TimeoutError:
            raise Refusal(422, "url_timed_out", f"The URL gave no picture within {self._seconds:g} s.") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise Refusal(422, "url_failed", "The URL cannot be fetched.") from None
        raise Refusal(422, "url_redirects", f"The URL redirects more than {REDIRECTS} times.")

    async def _get(self, url: str) -> bytes | str:
        """The bytes, or where a redirect leads."""
        connector = aiohttp.TCPConnector(resolver=_Checked(await self._check(url)), ssl=self._tls or True)
        headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "manet"}
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers, auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status in {301, 302, 303, 307, 308} and "Location" in response.headers:
                return urljoin(url, response.headers["Location"])
            if response.status != 200:
                raise Refusal(422, "url_failed", f"The URL answers {response.status}.")
            data = bytearray()
            async for block in response.content.iter_chunked(_BLOCK):
                data += block
                if len(data) > self._max_bytes:
                    raise Refusal(413, "too_large", f"The file at the URL is larger than {self._max_bytes} bytes.")
            return bytes(data)

    async def _check(self, url: str) -> list[Address]:
        """The addresses of the URL's host, all of them allowed."""
        refused = Refusal(422, "url_not_allowed", "Only https:// URLs of public addresses are fetched.")
        try:
            parts = urlsplit(url)
            port = parts.port or 443
        except ValueError:
            raise refused from None
        if parts.scheme != "https" or not parts.hostname or parts.username is not None or port not in self._ports:
            raise refused
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Refusal(422, "url_failed", "The URL's host has no address.") from None
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise refused
        return addresses
