"""URLs in one form, and the allow list: what may be asked for, and where a connection may go."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import Reject
from worker.stores.allow import Allowed, is_public
from worker.stores.url import BadUrl, Url, parse

ALLOWED = Allowed(
    [
        "s3://frames/",
        "https://media.example/in/",
        "http://127.0.0.1:8080/",
        "file:///data/frames",
        "https://xn--bcher-kva.example/",
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        "s3://frames/a.jpg",
        "S3://frames/cam 1/a.jpg".replace(" ", "%20"),
        "https://media.example/in/a.jpg",
        "https://MEDIA.example./in/a.jpg",
        "HTTPS://media.example:443/in/%61.jpg?X-Signature=abc",
        "http://127.0.0.1:8080/x",
        "file:///data/frames/a.jpg",
        "file://localhost/data/frames/a.jpg",
        "https://bücher.example/a",
    ],
)
def test_what_is_under_an_entry_may_be_asked_for(text: str) -> None:
    """Case of scheme and host, the usual port, a trailing dot, an encoded letter and an international name make no difference."""
    assert ALLOWED.checked(text) in ALLOWED


@pytest.mark.parametrize(
    "text",
    [
        "s3://other/a.jpg",
        "s3://framesx/a.jpg",
        "s3://frames",
        "s3://frames/../other/a.jpg",
        "s3://frames/%2e%2e/other/a.jpg",
        "s3://frames/%2E./a",
        "s3://frames/a//b",
        "s3://frames/./a",
        "s3://frames/a?versionId=1",
        "s3://frames:80/a",
        "s3://key:secret@frames/a",
        "https://media.example/other/a.jpg",
        "https://media.example/in",
        "https://media.example/in/../other/a.jpg",
        "https://media.example/in/%2e%2e/other",
        "https://media.example/in/..%2fother",
        "https://media.example/in/%252e%252e/other",
        "https://media.example/in/..\\other",
        "https://media.example\\@evil.example/in/a",
        "https://media.example@evil.example/in/a",
        "https://evil.example#@media.example/in/a",
        "https://evil.example/?https://media.example/in/a",
        "https://media.example.evil.example/in/a",
        "https://media.example:8443/in/a",
        "https://media.example:/in/a",
        "https://media.example:0/in/a",
        "https://media.example:99999/in/a",
        "http://media.example/in/a",
        "https://media.example%2eevil.example/in/a",
        "https:///media.example/in/a",
        "https:/media.example/in/a",
        "//media.example/in/a",
        " https://media.example/in/a",
        "https://media.example/in/a\n",
        "https://media.exam\tple/in/a",
        "https://ｍedia.example/../in/a",
        "http://127.0.0.1/x",
        "http://127.1:8080/x",
        "http://2130706433:8080/x",
        "http://0x7f000001:8080/x",
        "http://0177.0.0.1:8080/x",
        "http://[::ffff:127.0.0.1%25eth0]:8080/x",
        "http://localhost:8080/x",
        "http://127.0.0.1.nip.io:8080/x",
        "http://169.254.169.254/latest/meta-data/",
        "file:///data/frames/../../etc/passwd",
        "file:///data/framesx/a",
        "file:///etc/passwd",
        "file://server/data/frames/a",
        "file:/data/frames/a",
        "ftp://media.example/in/a",
        "gopher://127.0.0.1:8080/x",
        "javascript:alert(1)",
        "data:text/plain,hello",
        "frames/a.jpg",
        "",
        "https://media.example/in/" + "a" * 9000,
    ],
)
def test_what_is_not_under_an_entry_is_refused(text: str) -> None:
    """Whatever form is found to write it in: it is a reference_refused, whose message holds no query and no user."""
    with pytest.raises(Reject) as refused:
        ALLOWED.checked(text)
    assert refused.value.reason == "reference_refused"
    assert "secret" not in str(refused.value)


def test_an_ipv6_address_with_an_ipv4_one_inside_is_that_one() -> None:
    """::ffff:127.0.0.1 is 127.0.0.1, to an allow list as to a network."""
    assert parse("http://[::ffff:127.0.0.1]:8080/x") == parse("http://127.0.0.1:8080/x")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_every_text_has_one_form_or_none(rest: str) -> None:
    """Whatever stands in a record: parsing ends in a URL whose own text has the same form, or in one kind of error."""
    for start in ("", "https://media.example/in/", "s3://frames/", "http://"):
        try:
            url = parse(start + rest)
        except BadUrl:
            continue
        assert ".." not in url.path.split("/")
        assert "@" not in url.host
        assert parse(url.place + url.target) == url


@pytest.mark.parametrize(
    "entry", ["frames/", "s3://", "https://user@host/", "ftp://host/", "https://h/a?b", "https://h/../"]
)
def test_an_entry_that_is_no_beginning_is_a_mistake(entry: str) -> None:
    """The sentence names the entry and shows what is expected."""
    with pytest.raises(ValueError, match="expected the beginning of URLs"):
        Allowed([entry])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.8.9.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    """Private, loopback, link-local, shared, multicast and unspecified ones are not, nor what stands for one of them."""
    assert is_public(ipaddress.ip_address(address)) is public


def test_a_private_address_is_reached_only_by_its_own_name() -> None:
    """An entry with a name lets nobody in to the address it resolves to; an entry with the address does."""
    allowed = Allowed(["http://localhost:8080/", "http://10.0.0.5/"])
    inner = ipaddress.ip_address("127.0.0.1")
    assert not allowed.may_connect(parse("http://localhost:8080/a"), inner)
    assert allowed.may_connect(parse("http://10.0.0.5/a"), ipaddress.ip_address("10.0.0.5"))
    assert not allowed.may_connect(parse("http://10.0.0.5/a"), inner)
    assert allowed.may_connect(parse("http://localhost:8080/a"), ipaddress.ip_address("93.184.216.34"))


def test_a_url_is_shown_without_its_query() -> None:
    """A signature in a query is no business of a log."""
    assert str(parse("https://media.example/in/a?X-Amz-Signature=abc")) == "https://media.example/in/a?..."
    assert isinstance(parse("s3://b1/k"), Url)
