"""The configuration of protection: what belongs together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from whimbrel.model.endpoint import FileEndpoint, NbdEndpoint
from whimbrel.stream.protect import ProtectConfig


def test_modes_and_their_shadow() -> None:
    shadow = NbdEndpoint(host="a", port=1, writable=True)
    assert ProtectConfig().shadow is None
    given = ProtectConfig(mode="mirror", shadow=shadow)
    assert ProtectConfig.model_validate_json(given.model_dump_json()) == given
    assert ProtectConfig(mode="journal", shadow=FileEndpoint(path="/s", writable=True)).max_lag_s > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "mirror"},
        {"mode": "none", "shadow": FileEndpoint(path="/s", writable=True)},
        {"mode": "journal", "shadow": FileEndpoint(path="/s")},
        {"max_lag_bytes": 0},
    ],
)
def test_what_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ProtectConfig.model_validate(wrong)
