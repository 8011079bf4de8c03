"""Fetching for a client, without reaching into the server's own network."""

import http.client
import ipaddress
import socket
import ssl
from time import monotonic
from urllib.parse import urljoin, urlsplit

from mmspec.errors import MmspecError

# The part of IPv6 that is routed on the open internet, and those of its blocks that lead on into IPv4 (Teredo, 6to4).
ROUTED, TUNNELS = (
    ipaddress.ip_network("2000::/3"),
    [ipaddress.ip_network(block) for block in ("2001::/32", "2002::/16")],
)

# Redirects that are followed.
REDIRECTS = 5


def public(address: str) -> bool:
    """Whether an IP address belongs to the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in ROUTED or any(ip in block for block in TUNNELS)):
        return False
    return ip.is_global and not ip.is_multicast


def resolve_public(host: str, port: int) -> str:
    """An address of the host. Raises OSError if one that is not public is among its addresses."""
    addresses = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not all(public(address) for address in addresses):
        raise OSError("the address is not public")
    return addresses[0]


def connect(url: str, seconds: float) -> http.client.HTTPConnection:
    """A connection to the very address that was checked, so that the name cannot point elsewhere in between."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OSError("not an http(s) address")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    link = socket.create_connection((resolve_public(parts.hostname, port), port), timeout=seconds)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=seconds)
    try:
        connection.sock = (
            ssl.create_default_context().wrap_socket(link, server_hostname=parts.hostname) if secure else link
        )
    except BaseException:
        link.close()
        raise
    return connection


def fetch(url: str, most: int, seconds: float) -> bytes:
    """What is at an http(s) address, within `seconds`; private, local and reserved addresses are refused at every
    redirect.
    """
    until, data = monotonic() + seconds, b""
    try:
        for _ in range(REDIRECTS):
            connection = connect(url, max(0.1, until - monotonic()))
            try:
                parts = urlsplit(url)
                connection.request(
                    "GET",
                    (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                    headers={"Host": parts.netloc},
                )
                response = connection.getresponse()
                if response.status in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.getheader("Location") or "")
                    continue
                if response.status != 200:
                    raise OSError(f"status {response.status}")
                while part := response.read1(65536):
                    data += part
                    if len(data) > most or monotonic() > until:
                        raise OSError(f"more than {most} bytes" if len(data) > most else f"more than {seconds:g} s")
                return data
            finally:
                connection.close()
        raise OSError(f"more than {REDIRECTS} redirects")
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise MmspecError(f"a picture could not be fetched ({error}): check its address, or give a data URL") from None
