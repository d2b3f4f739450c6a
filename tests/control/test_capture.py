"""What `loden capture` refuses; captures themselves are tested in tests/netns."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from control.capture import capture_command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], "3 addresses are given; allowed: up to 2"),
        (["10.0.0.x"], "'10.0.0.x' does not appear to be an IPv4 or IPv6"),
        (["--drop", "spoofed"], "'spoofed' is not one of 'malformed', 'no_route'"),
        (["--snap-bytes", "10"], "10 is not in the range 64<=x<="),
    ],
)
def test_filter_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(capture_command, words)
    assert result.exit_code == 2
    assert said in result.output


def test_without_a_forwarder_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(capture_command, ["--run-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert f"no forwarder is running in {tmp_path}" in result.output
