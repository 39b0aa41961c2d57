"""What is made of a Host header and of exceptions, without a server."""

from __future__ import annotations

import pytest

from microplane.errors import DataError
from microplane.serving.http import error_of, host_of
from microplane.serving.protocol import ApiError
from microplane.serving.scheduler import BusyError, EndingError, TooLateError


@pytest.mark.parametrize(
    ("header", "host"),
    [
        (b"Example.org", "example.org"),
        (b"example.org:8080", "example.org"),
        (b"example.org:", "example.org"),
        (b"[::1]:8080", "[::1]"),
        (b"[::1]", "[::1]"),
        (b"[fe80::a:b]", "[fe80::a:b]"),
        (b"", ""),
    ],
)
def test_the_name_of_a_host_is_without_its_port(header, host):
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BusyError("full"), 429, "server_busy"),
        (EndingError("over"), 503, "server_busy"),
        (TooLateError("late"), 408, "timeout"),
        (DataError("bad"), 400, "invalid_value"),
        (ApiError(418, "tea", code="teapot"), 418, "teapot"),
        (ZeroDivisionError("inner thing"), 500, "internal_error"),
    ],
)
def test_what_a_client_is_told_of_an_exception(error, status, code):
    told = error_of(error)
    assert (told.status, told.body["error"]["code"]) == (status, code)
    assert "inner thing" not in str(told.body), "a defect is nobody's business"
