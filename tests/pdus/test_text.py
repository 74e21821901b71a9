"""Text pairs and segment sizes on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdus.errors import FormatError
from pdus.iscsi.digest import digest
from pdus.iscsi.framing import PAD, data_size, header_size, padded
from pdus.iscsi.text import encode_pairs, parse_pairs

KEYS = st.text("ABCabc#-1", min_size=1, max_size=20)
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=50)


@given(st.lists(st.tuples(KEYS, VALUES)))
def test_pairs_survive_the_wire(pairs: list[tuple[str, str]]) -> None:
    assert parse_pairs(encode_pairs(pairs)) == pairs


@given(st.binary(max_size=200))
def test_garbage_gives_pairs_or_format_error(data: bytes) -> None:
    try:
        parse_pairs(data)
    except FormatError:
        return


@pytest.mark.parametrize("text", [b"a=b", b"ab\0", b"=b\0", b"k" * 64 + b"=v\0", b"a=\xff\0"])
def test_malformed_text_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_pairs(text)


def test_digest_is_the_little_endian_castagnoli_crc() -> None:
    # RFC 7143 appendix A.4: 32 bytes of zeros give aa 36 91 8a.
    assert digest(bytes(32)).hex() == "aa36918a"
    assert digest(bytes(16), bytes(16)) == digest(bytes(32))


def test_sizes_count_padding_and_digests() -> None:
    assert [padded(n) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert [len(PAD[n & 3]) for n in (4, 5, 6, 7)] == [0, 3, 2, 1]
    assert header_size(2, True) == 48 + 8 + 4
    assert data_size(0, True) == 0
    assert data_size(5, True) == 12
