import pytest

from forwarder.dscp import COPY, parse_dscp


@pytest.mark.parametrize(("text", "dscp"), [("copy", COPY), ("0", 0), ("46", 46), ("63", 63)])
def test_dscp_is_a_number_or_the_inner_packets(text: str, dscp: int) -> None:
    assert parse_dscp(text) == dscp


@pytest.mark.parametrize("text", ["64", "-1", "", "ef", "4.5", "²", "copy "])
def test_what_is_no_dscp_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; allowed: 0 to 63, or 'copy'"):
        parse_dscp(text)
