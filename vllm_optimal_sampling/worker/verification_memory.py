"""What the rows of a step with theta take of the device's memory, and the chunk that verification works on.

A step verifies K + 1 rows a request: all of them in the dtype of the model's head, and a chunk of them in float32 at a time.
vLLM's chunk is 1 GiB. Rows are handled one by one, so a smaller chunk costs a few launches more and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_BYTES = 256 << 20
MIB = 1 << 20
GIB = 1 << 30


def chunk_rows_in_float32(vocab_size: int) -> int:
    """Rows that verification may hold in float32 at once: at least 1."""
    return max(1, CHUNK_BYTES // (4 * vocab_size))


@dataclass(frozen=True)
class RowMemory:
    """Bytes of the rows of both models, for the largest batch.

    Args:
        max_num_seqs: requests.
        drafts: K.
        vocab_size: of the teacher.
        row_bytes: of one number in a row, in the dtype of the model's head.
    """

    max_num_seqs: int
    drafts: int
    vocab_size: int
    row_bytes: int

    @property
    def per_request(self) -> int:
        """Theta's rows and the teacher's, of one request."""
        return 2 * (self.drafts + 1) * self.vocab_size * self.row_bytes

    @property
    def chunk(self) -> int:
        """Of a chunk in float32."""
        rows = min(self.max_num_seqs * (self.drafts + 1), chunk_rows_in_float32(self.vocab_size))
        return 4 * rows * self.vocab_size

    @property
    def total(self) -> int:
        return self.max_num_seqs * self.per_request + self.chunk

    def __str__(self) -> str:
        return (
            f"{self.total / GIB:.2f} GiB for the rows of {self.max_num_seqs} requests with {self.drafts} drafts "
            f"({self.per_request / MIB:.1f} MiB a request; --max-num-seqs says how many)"
        )
