"""gateway/edge/head.py: what a head says, and what of it could be read in two ways."""

import pytest

from gateway.edge.head import Head, read_head
from gateway.errors import ExpectationFailed, NotHttp, RepeatedHeader

Pairs = list[tuple[bytes, bytes]]
HOST: Pairs = [(b"host", b"gateway")]


def head(
    *pairs: tuple[bytes, bytes],
    method: bytes = b"POST",
    target: bytes = b"/",
    version: str = "1.1",
    keep_alive: bool = True,
    host: Pairs = HOST,
) -> Head:
    return read_head(method, target, [*host, *pairs], version, keep_alive=keep_alive)


def test_a_head_says_what_it_says() -> None:
    """Nothing is added, and nothing is left out."""
    assert head((b"x", b"1"), (b"content-length", b"5"), target=b"/v1/a%20b?q=%20") == Head(
        method="POST",
        path="/v1/a b",
        query=b"q=%20",
        headers={b"host": b"gateway", b"x": b"1", b"content-length": b"5"},
        repeated=None,
        http_1_0=False,
        keep_alive=True,
        expects=False,
    )


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"gateway",
        b"Gateway.example.:443",
        b"127.0.0.1:8080",
        b"[::1]",
        b"[::1]:8080",
        b"[fe80::1%eth0]:80",
        b"under_score",
        b"host:",
        b"xn--bcher-kva.example",
        b"a%20b",
    ],
)
def test_hosts_that_are_names(host: bytes) -> None:
    """A name or an address, with or without a port; empty is legal (RFC 9110, 7.2)."""
    assert head(host=[(b"host", host)]).headers[b"host"] == host


@pytest.mark.parametrize(
    "host",
    [
        b"a/b",
        b"a?b",
        b"a#b",
        b"a@b",
        b"user:key@gateway",
        b"gateway:80:81",
        b"gateway:8o",
        b"gateway:-1",
        b"::1",
        b"[::1",
        b"::1]",
        b"[]",
        b"[::1]x",
        b"two hosts",
        b"gateway\t",
        b"gateway\n",
        b"a\\b",
        b'a"b',
        b"<a>",
        b"h\xc3\xb6st",
        b"\xef\xbc\x91",
        b"a\x00b",
        b"gateway, other",
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_hosts_that_are_none(host: bytes, version: str) -> None:
    """Something else stands in it: a path, a user, a second host."""
    with pytest.raises(NotHttp, match="Host"):
        head(host=[(b"host", host)], version=version)


def test_only_old_callers_may_leave_out_the_host() -> None:
    """RFC 9112, 3.2."""
    assert head(host=[], version="1.0").http_1_0
    with pytest.raises(NotHttp, match="no Host"):
        head(host=[])


@pytest.mark.parametrize("encoding", [b"chunked", b"Chunked", b"CHUNKED"])
def test_chunked_is_the_one_encoding(encoding: bytes) -> None:
    """In any letters."""
    assert head((b"transfer-encoding", encoding)).headers[b"transfer-encoding"] == encoding


@pytest.mark.parametrize(
    "encoding",
    [
        b"",
        b"identity",
        b"gzip",
        b"gzip, chunked",
        b"chunked, gzip",
        b"chunked, chunked",
        b"chunked,",
        b",chunked",
        b"xchunked",
        b"chunked;q=1",
        b'"chunked"',
        b"chunked\x00",
        b"chunked\x0b",
        b"\xa0chunked",
    ],
)
def test_other_transfer_encodings_are_refused(encoding: bytes) -> None:
    """A proxy before us may have framed the body by what we would have to guess."""
    with pytest.raises(NotHttp, match="Transfer-Encoding"):
        head((b"transfer-encoding", encoding))


def test_an_old_caller_knows_no_chunks() -> None:
    """RFC 9112, 6.1: a Transfer-Encoding in HTTP/1.0 is faulty framing."""
    with pytest.raises(NotHttp, match="Transfer-Encoding"):
        head((b"transfer-encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize("version", ["1.2", "2.0", "0.9", "9.9", "1.10", ""])
def test_versions_that_are_not_spoken(version: str) -> None:
    """Two are."""
    with pytest.raises(NotHttp, match="version"):
        head(version=version)


@pytest.mark.parametrize("keep_alive", [True, False])
def test_versions_and_what_comes_after(keep_alive: bool) -> None:
    """Whether a caller goes on is what the parser made of his head."""
    assert head(keep_alive=keep_alive).keep_alive is keep_alive
    assert head(version="1.0", keep_alive=keep_alive).keep_alive is keep_alive
    assert not head().http_1_0


@pytest.mark.parametrize("name", [b"transfer-encoding", b"content-length"])
@pytest.mark.parametrize("values", [(b"chunked", b"chunked"), (b"5", b"5"), (b"5", b"6"), (b"chunked", b"identity")])
def test_what_frames_a_body_stands_once(name: bytes, values: tuple[bytes, bytes]) -> None:
    """Even where it says the same twice: two parsers may differ in what the second one does to the first."""
    with pytest.raises(NotHttp, match=f"more than one {name.decode()}"):
        head((name, values[0]), (b"x", b"between"), (name, values[1]))


@pytest.mark.parametrize("name", [b"authorization", b"content-encoding", b"content-type", b"expect", b"traceparent"])
def test_what_decides_something_stands_once(name: bytes) -> None:
    """Told when the caller is asked who he is, so that nobody is let in by the one of two that we looked at."""
    value = b"100-continue" if name == b"expect" else b"gateway"
    found = head((name, value), (b"x", b"between"), (name, value))
    assert found.repeated == name
    with pytest.raises(RepeatedHeader, match=f"'{name.decode()}'"):
        str(found.bearer)


def test_a_call_has_one_host() -> None:
    """RFC 9112, 3.2: with two of them it is refused, whoever asks for what."""
    with pytest.raises(NotHttp, match="more than one host"):
        head((b"host", b"elsewhere"))


@pytest.mark.parametrize("name", [b"accept", b"cookie", b"x-forwarded-for", b"via", b"connection"])
def test_other_headers_may_stand_more_than_once(name: bytes) -> None:
    """The last value is kept."""
    found = head((name, b"1"), (name, b"2"))
    assert found.repeated is None
    assert found.header(name) == "2"
    assert found.bearer is None


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        pytest.param(b"/", "/", b"", id="root"),
        pytest.param(b"/livez", "/livez", b"", id="plain"),
        pytest.param(b"/livez?", "/livez", b"", id="an empty query"),
        pytest.param(b"/a?b=c?d", "/a", b"b=c?d", id="a query with a question mark"),
        pytest.param(b"/a?%2e%2e", "/a", b"%2e%2e", id="a query is left as it came"),
        pytest.param(b"//evil/v1/models", "//evil/v1/models", b"", id="two slashes are no authority"),
        pytest.param(b"/v1/../metrics", "/v1/../metrics", b"", id="dots stay"),
        pytest.param(b"/v1/%2e%2e/metrics", "/v1/../metrics", b"", id="escaped dots too"),
        pytest.param(b"/v1%2Fmodels", "/v1/models", b"", id="an escaped slash"),
        pytest.param(b"/%252e", "/%2e", b"", id="escaped once"),
        pytest.param(b"/%", "/%", b"", id="half an escape"),
        pytest.param(b"/%zz%4", "/%zz%4", b"", id="no escapes"),
        pytest.param(b"/na%C3%AFve", "/naïve", b"", id="letters"),
        pytest.param(b"/%ff%00", "/\ufffd\x00", b"", id="no letters"),
        pytest.param(b"/a;b=c", "/a;b=c", b"", id="parameters"),
        pytest.param(b"/a%3Fb", "/a?b", b"", id="an escaped question mark begins no query"),
        pytest.param(b"http://evil/v1/models?x=1", "/v1/models", b"x=1", id="absolute"),
        pytest.param(b"http://evil:81/v1/models", "/v1/models", b"", id="absolute with a port"),
        pytest.param(b"https://user@evil/v1/%61", "/v1/a", b"", id="absolute with a user"),
        pytest.param(b"http://evil", "/", b"", id="absolute without a path"),
        pytest.param(b"http://evil?x", "/", b"x", id="absolute with a query alone"),
        pytest.param(b"HTTP://EVIL/a", "/a", b"", id="absolute in capitals"),
    ],
)
def test_the_path_of_a_target(target: bytes, path: str, query: bytes) -> None:
    """Decoded once and never normalised; of an absolute target nothing but path and query counts."""
    found = head(target=target)
    assert (found.path, found.query) == (path, query)


@pytest.mark.parametrize(
    "target", [b"*", b"evil:80", b"evil", b"@evil/v1/models", b"?x", b"#x", b"http://", b"http:/a", b"http:///a", b""]
)
def test_targets_that_are_no_path(target: bytes) -> None:
    """Nor a URL with one."""
    with pytest.raises(NotHttp, match="no path"):
        head(target=target)


@pytest.mark.parametrize(
    ("expect", "version", "expects"),
    [
        (b"100-continue", "1.1", True),
        (b"100-Continue", "1.1", True),
        (b"100-continue", "1.0", False),
        (b"", "1.1", False),
    ],
)
def test_the_one_expectation_that_is_met(expect: bytes, version: str, expects: bool) -> None:
    """A caller of HTTP/1.0 does not know interim answers (RFC 9110, 10.1.1)."""
    assert head((b"expect", expect), version=version).expects is expects


@pytest.mark.parametrize("expect", [b"100-continued", b"the worst", b"100-continue, more", b"200-ok"])
def test_other_expectations_fail(expect: bytes) -> None:
    """417, and nobody guesses."""
    with pytest.raises(ExpectationFailed):
        head((b"expect", expect))


@pytest.mark.parametrize(
    ("authorization", "bearer"),
    [
        (b"Bearer key", "key"),
        (b"bearer key", "key"),
        (b"BEARER key", "key"),
        (b"Bearer  key ", "key"),
        (b"Bearer \xff", "ÿ"),
        (b"Bearer ", ""),
        (b"Bearer", ""),
        (b"Bearer a b", "a b"),
        (b"Basic a2V5", None),
        (b"key", None),
        (b"Bearerkey", None),
        (b"", None),
    ],
)
def test_a_bearer_token(authorization: bytes, bearer: str | None) -> None:
    """RFC 6750; every byte of it has a character, so that none can be lost in a comparison."""
    assert head((b"authorization", authorization)).bearer == bearer


def test_a_key_in_the_url_is_none() -> None:
    """URLs are logged by everybody on the way."""
    assert head(target=b"/?access_token=key&key=key&authorization=Bearer%20key").bearer is None


def test_a_header_that_is_not_there_is_empty() -> None:
    """And every byte of one that is there has a character."""
    found = head((b"x", b"\xe9\xff"))
    assert found.header(b"x") == "éÿ"
    assert found.header(b"y") == ""
