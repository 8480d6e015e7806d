"""Which addresses are public; of an IPv6 address that stands for an IPv4 one, the latter decides."""

import pytest

from codebrush.data.crawl.addresses import is_private_host, is_public


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("2606:4700::1111", True),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff0e::1", False),
        ("2001:db8::1", False),
        # IPv4-mapped
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        # NAT64, also of a cloud's metadata address
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::127.0.0.1", False),
        ("64:ff9b::224.0.0.1", False),
        ("64:ff9b::8.8.8.8", True),
        # NAT64 of a local network, which decides where in it the IPv4 address is
        ("64:ff9b:1::a9fe:a9fe", False),
        ("64:ff9b:1:a00:0:100::", False),
        ("64:ff9b:1::8.8.8.8", False),
        # IPv4-compatible and IPv4-translated, which are not routed
        ("::10.0.0.1", False),
        ("::169.254.169.254", False),
        ("::8.8.8.8", False),
        ("::ffff:0:10.0.0.1", False),
        # 6to4
        ("2002:0a00:0001::", False),
        ("2002:a9fe:a9fe::1", False),
        ("2002:0808:0808::1", True),
        # Teredo, with a private server and with a private client
        ("2001:0:a9fe:a9fe:0:0:f7f7:f7f7", False),
        ("2001:0:808:808:0:0:f5ff:fffe", False),
    ],
)
def test_what_is_public(address: str, public: bool):
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("nas.local", True),
        ("64:ff9b::a00:1", True),
        ("8.8.8.8", False),
        ("example.org", False),
        # the same with the dot that ends a full name
        ("localhost.", True),
        ("metadata.internal.", True),
        ("127.0.0.1.", True),
        ("example.org.", False),
        # other ways to write an IPv4 address that resolvers read: 127.0.0.1, 169.254.169.254, 8.8.8.8
        ("127.1", True),
        ("2130706433", True),
        ("0x7f.0.0.1", True),
        ("0251.0376.0251.0376", True),
        ("134744072", False),
    ],
)
def test_hosts_of_a_local_network(host: str, private: bool):
    assert is_private_host(host) is private
