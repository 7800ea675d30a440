"""The suites are plain modules; pytest must still explain their asserts."""

import pytest

pytest.register_assert_rewrite("tests.contract.suites", "tests.contract.blockio")
