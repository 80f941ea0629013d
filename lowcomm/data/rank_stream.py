"""What the streams of batches have in common, whatever they are drawn from."""

from __future__ import annotations

from lowcomm.errors import DataError


class RankStream:
    """The stream of one rank of one island. All ranks draw in step and take disjoint samples.

    Args:
        sample_tokens: what a sample counts.
        batch_size: samples per rank and batch.
        rank, world_size: of this process within the island.

    Raises:
        DataError: there is no such rank.
    """

    def __init__(self, sample_tokens: int, batch_size: int, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise DataError(f"expected 0 <= rank < world size = {world_size}, got rank {rank}")
        self._sample_tokens, self._batch_size = sample_tokens, batch_size
        self._rank, self._world_size = rank, world_size
        self._epoch = self._position = self._tokens = 0

    @property
    def epoch(self) -> int:
        """How often all samples were drawn."""
        return self._epoch

    @property
    def tokens(self) -> int:
        """Tokens drawn so far by all ranks of the island, skipped ones included."""
        return self._tokens

    @property
    def batch_tokens(self) -> int:
        """Tokens of one batch, over all ranks of the island."""
        return self._batch_size * self._world_size * self._sample_tokens

    def _whole(self, tokens: int) -> int:
        """So many samples are to be skipped.

        Raises:
            DataError: not a whole number of them.
        """
        samples, rest = divmod(tokens, self._sample_tokens)
        if tokens < 0 or rest:
            raise DataError(
                f"skip: expected whole samples of {self._sample_tokens} tokens, got {tokens} tokens"
            )
        return samples
