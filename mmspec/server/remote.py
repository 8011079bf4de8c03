"""Fetching for a client, without reaching into the server's own network."""

import http.client
import ipaddress
import socket
from typing import Any
from urllib.error import URLError
from urllib.request import HTTPHandler, HTTPSHandler, ProxyHandler, build_opener

from mmspec.errors import MmspecError


def public(address: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or found
    return mapped.is_global and not mapped.is_multicast


def connect(address: tuple[str, int], *rest: Any, **options: Any) -> socket.socket:
    """A connection to a public address. It is the connected socket that is asked, so that a name cannot change its mind in between."""
    for _, _, _, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        if not public(str(place[0])):
            raise URLError("the address is not public")
    found = socket.create_connection(address, *rest, **options)
    if not public(found.getpeername()[0]):
        found.close()
        raise URLError("the address is not public")
    return found


class PublicConnection(http.client.HTTPConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._create_connection = connect


class PublicTlsConnection(http.client.HTTPSConnection):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._create_connection = connect


class PublicHandler(HTTPHandler):
    def http_open(self, request: Any) -> Any:
        return self.do_open(PublicConnection, request)


class PublicTlsHandler(HTTPSHandler):
    def https_open(self, request: Any) -> Any:
        return self.do_open(PublicTlsConnection, request)


def fetch(url: str, most: int, seconds: float) -> bytes:
    """What is at an http(s) address, redirects followed; private, local and reserved addresses are refused at every step."""
    if not url.startswith(("http://", "https://")):
        raise MmspecError("a picture's address starts with data:, http:// or https://")
    opener = build_opener(ProxyHandler({}), PublicHandler, PublicTlsHandler)
    try:
        with opener.open(url, timeout=seconds) as response:
            data = response.read(most + 1)
    except (URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise MmspecError(f"a picture could not be fetched ({reason}): check its address, or give a data URL") from None
    if len(data) > most:
        raise MmspecError(f"a fetched picture has more than {most} bytes: give a smaller one")
    return data
