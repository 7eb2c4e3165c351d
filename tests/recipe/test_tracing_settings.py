"""The section `tracing`: where spans may go, and which headers a request may have."""

from __future__ import annotations

import pytest

from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read


def settings_of(*sets):
    return read("local-dual", sets).recipe.tracing


def test_nothing_is_sent_by_default():
    assert settings_of().endpoint is None


def test_headers_name_secrets_of_the_recipe():
    sets = ("tracing.headers={Authorization: OTLP_AUTH}", "secrets=[OTLP_AUTH]")
    assert settings_of(*sets).headers == {"Authorization": "OTLP_AUTH"}
    with pytest.raises(RecipeError, match="OTLP_AUTH is not in `secrets`"):
        settings_of(sets[0])


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("tracing.endpoint=collector:4318", "begins with http"),
        ("tracing.endpoint=http://user:word@collector:4318", "no passwords"),
        ("tracing.endpoint=http://collector:99999", "[Pp]ort"),
        ("tracing.endpoint=http://collector:0", "port 0"),
        ("tracing.headers={Content-Type: A}", "set by raylaunch"),
        ("tracing.headers={'a b': A}", "not a header name"),
        ("tracing.headers={x-key: 'Bearer abc'}", "not the name of a variable"),
    ],
)
def test_what_cannot_be_sent_is_refused(wrong, why):
    with pytest.raises(RecipeError, match=why):
        settings_of(wrong, "secrets=[A]")
