"""Tells public internet addresses from private ones, also where an IPv6 address stands for an IPv4 one."""

import ipaddress
import socket

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all IPv6 that is routed; RFC 4291, section 2.4
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # the last 32 bits are an IPv4 address; RFC 6052, section 2.1


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet. Raises ValueError if it is not an address.

    An IPv6 address that stands for an IPv4 one (IPv4-mapped, NAT64, 6to4) must stand for a public one. Other ways to
    embed one (IPv4-compatible, Teredo, the local NAT64 prefix 64:ff9b:1::/48) are never public.
    """
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        embedded = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            embedded = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if found not in GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast


def is_private_host(host: str) -> bool:
    """Whether the host of a URL is a private address, or a name that only a local network knows.

    Addresses count in every form that resolvers read: 127.1, 2130706433 and 0x7f.0.0.1 are 127.0.0.1.
    """
    host = host.lower().removesuffix(".")
    try:
        return not is_public(host)
    except ValueError:
        pass
    try:
        return not is_public(socket.inet_ntoa(socket.inet_aton(host)))
    except (OSError, ValueError):
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
