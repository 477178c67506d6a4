"""Base URLs: parts, normal form, and the hosts that may not be contacted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.config.base_url import BaseUrl, judge_host, parse_base_url
from tests.unit.config.build import SMALL, edited, faults

URL = ("providers", "openai", "base_url")
ALLOW = ("providers", "openai", "allow_private_network")
PRIVATE = "is a loopback or private address; set allow_private_network: true if that is meant"
FORBIDDEN = "names a link-local, metadata, multicast or unspecified address, which is refused always"
FOUR_NUMBERS = "must have an IPv4 address as four plain decimal numbers: 203.0.113.7"
HOST = "must have a host of letters, digits, dots and dashes (other scripts as xn--)"
NO_HOST = "must name a host and, if any, a port from 1 to 65535: https://api.example.com:8443/v1"
PLAIN_PATH = "must have a plain path such as /v1, without empty, `.` or `..` parts"
IPV6 = "must have an IPv6 address in brackets without a zone: http://[2001:db8::1]:8080"
SYNTAX = "must be a URL such as https://api.example.com/v1"
CHARACTERS = "must be a URL without spaces, backslashes or control characters"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://api.openai.com/v1", BaseUrl("https", "api.openai.com", 443, "/v1")),
        ("https://api.openai.com/v1/", BaseUrl("https", "api.openai.com", 443, "/v1")),
        ("HTTPS://API.OpenAI.com", BaseUrl("https", "api.openai.com", 443, "")),
        ("http://ollama:11434/", BaseUrl("http", "ollama", 11434, "")),
        ("http://8.8.8.8:80/a/b-c", BaseUrl("http", "8.8.8.8", 80, "/a/b-c")),
        ("https://[2001:DB8:0::1]:8443", BaseUrl("https", "2001:db8::1", 8443, "")),
    ],
)
def test_a_base_url_is_taken_apart(text: str, expected: BaseUrl) -> None:
    assert expected == parse_base_url(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://H.example:443/v1/", "https://h.example/v1"),
        ("http://h:80", "http://h"),
        ("http://h:443", "http://h:443"),
        ("https://[2001:db8::0:1]:444/", "https://[2001:db8::1]:444"),
    ],
)
def test_equal_places_have_one_normal_form(text: str, normal: str) -> None:
    assert normal == str(parse_base_url(text))
    assert normal == str(parse_base_url(normal))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://h", "must start with http:// or https://"),
        ("api.openai.com/v1", "must start with http:// or https://"),
        ("https://", NO_HOST),
        ("https:///v1", NO_HOST),
        ("https://h:0", NO_HOST),
        ("https://h:", NO_HOST),
        ("https://h:70000", SYNTAX),
        ("https://h:x", SYNTAX),
        ("https://[::1", SYNTAX),
        ("https://user:pw@h", "must not hold a user name or password; use api_key"),
        ("https://@h", "must not hold a user name or password; use api_key"),
        ("https://h?a=b", "must not have a query; put parameters under `query`"),
        ("https://h/v1?", "must not have a query; put parameters under `query`"),
        ("https://h/#", "must not have a fragment; remove the # and what follows"),
        ("https://h/ v1", CHARACTERS),
        ("https://h\\@evil", CHARACTERS),
        ("https://h//v1", PLAIN_PATH),
        ("https://h/v1//", PLAIN_PATH),
        ("https://h/a/../b", PLAIN_PATH),
        ("https://h/%2e%2E/b", PLAIN_PATH),
        ("https://h/a/./b", PLAIN_PATH),
        ('https://h/"', PLAIN_PATH),
        ("https://h.", HOST),
        ("https://-h", HOST),
        ("https://a..b", HOST),
        ("https://h%2e1", HOST),
        ("https://\u4f8b.example", HOST),
        ("https://" + "a" * 64, HOST),
        ("https://" + ".".join(["a" * 60] * 5), HOST),
        ("http://2130706433/", FOUR_NUMBERS),
        ("http://0x7f.1", FOUR_NUMBERS),
        ("http://0x7f000001", FOUR_NUMBERS),
        ("http://0177.0.0.1", FOUR_NUMBERS),
        ("http://127.1", FOUR_NUMBERS),
        ("http://1.2.3.4.5", FOUR_NUMBERS),
        ("http://256.1.1.1", FOUR_NUMBERS),
        ("http://[fe80::1%25eth0]", IPV6),
        ("http://[fe80::1%eth0]", IPV6),
        ("http://169.254.169.254", FORBIDDEN),
        ("http://169.254.1.1", FORBIDDEN),
        ("http://100.100.100.200", FORBIDDEN),
        ("http://0.0.0.0", FORBIDDEN),
        ("http://224.0.0.1", FORBIDDEN),
        ("http://255.255.255.255", FORBIDDEN),
        ("http://[::]", FORBIDDEN),
        ("http://[fe80::1]", FORBIDDEN),
        ("http://[ff02::1]", FORBIDDEN),
        ("http://[fd00:ec2::254]", FORBIDDEN),
        ("http://[::ffff:169.254.169.254]", FORBIDDEN),
        ("http://[64:ff9b::a9fe:a9fe]", FORBIDDEN),
        ("http://[2002:a9fe:a9fe::]", FORBIDDEN),
        ("http://metadata.google.internal", FORBIDDEN),
        ("http://METADATA.google.internal:80", FORBIDDEN),
    ],
)
def test_a_faulty_base_url_is_refused_even_where_private_networks_are_allowed(text: str, reason: str) -> None:
    config = edited(edited(SMALL, URL, text), ALLOW, True)
    found = faults(config)["providers.openai.base_url"]
    assert reason == found


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "api.localhost",
        "127.0.0.1",
        "127.8.9.10",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "[::1]",
        "[fd12::1]",
        "[fec0::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a00:1]",
        "[::10.0.0.1]",
        "[64:ff9b::a00:1]",
    ],
)
def test_a_private_literal_needs_allow_private_network(host: str) -> None:
    config = edited(SMALL, URL, f"http://{host}:8080")
    assert {"providers.openai.base_url": PRIVATE} == faults(config)
    assert {} == faults(edited(config, ALLOW, True))


@pytest.mark.parametrize("host", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860::1", "::ffff:8.8.8.8", "h"])
def test_a_public_literal_or_a_name_needs_no_permission(host: str) -> None:
    assert "public" == judge_host(host)


@given(st.text(max_size=40))
def test_any_text_is_parsed_to_a_fixed_point_or_refused(text: str) -> None:
    try:
        url = parse_base_url("http://" + text)
    except ValueError:
        return
    assert url == parse_base_url(str(url))
