"""tests/fuzz_runtime.py in short: the doors that have no test of random input elsewhere."""

import fuzz_runtime
import pytest


@pytest.mark.parametrize("door", fuzz_runtime.DOORS)
def test_no_input_at_a_door_is_an_error_of_a_kind_that_users_should_not_see(door, tmp_path):
    assert fuzz_runtime.attempts(door, 300, tmp_path) == ""


@pytest.mark.long
@pytest.mark.parametrize("door", fuzz_runtime.DOORS)
def test_no_input_of_a_thousand_is_either(door, tmp_path):
    assert fuzz_runtime.attempts(door, 1000, tmp_path, first=1000) == ""
