"""Secrets in addresses."""

from __future__ import annotations

import pytest

from refine.files.addresses import has_secrets, scrubbed, without_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pw@host/a.pkl?token=x&v=2", "https://***@host/a.pkl?token=***&v=2"),
        (
            "https://host/a.pkl?X-Amz-Credential=AB%2F1&X-Amz-Signature=cd&x=1",
            "https://host/a.pkl?X-Amz-Credential=***&X-Amz-Signature=***&x=***",
        ),
        ("https://me:p@ss@host/a.pkl", "https://***@host/a.pkl"),
        ("https://ghp_abc@github.com/a/b", "https://***@github.com/a/b"),
        (
            "no file at ftp://u:p@h/x and https://h/y?sig=1, sorry",
            "no file at ftp://***@h/x and https://h/y?sig=*** sorry",
        ),
        ("https://host/a.pkl#access_token=abc", "https://host/a.pkl#access_token=***"),
        ("https://drive.google.com/uc?id=1a2b&export=download", "https://drive.google.com/uc?id=1a2b&export=download"),
        ("https://host/a.pkl?t0ken", "https://host/a.pkl?***"),
        ("https://host/a.pkl?h=t0ken;raw#part", "https://host/a.pkl?h=***;raw#***"),
        ("https://host?a=b", "https://host?a=***"),
        ("(see https://host/x?token=abc).", "(see https://host/x?token=***"),
        ("https://host/a@b.pkl", "https://host/a@b.pkl"),
        ("runs/token=1.pkl", "runs/token=1.pkl"),
        ("me@host", "me@host"),
    ],
)
def test_what_is_hidden(text, expected):
    assert without_secrets(text) == expected
    assert without_secrets(expected) == expected
    assert has_secrets(text) == (text != expected)


def test_message_that_names_a_path_only():
    said = "HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /g.pkl?token=t0ken&v=1 (Caused by x?)"
    assert scrubbed(said) == said.replace("t0ken", "***")
    assert scrubbed("bad https://me:pw@h/x?a=b: gone") == "bad https://***@h/x?a=*** gone"
