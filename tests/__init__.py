"""Tests mirror the package; `contract.py` holds what every engine must satisfy."""

import pytest

pytest.register_assert_rewrite("tests.contract")
