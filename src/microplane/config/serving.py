"""The knobs of `microplane serve`, which are no part of a run."""

from __future__ import annotations

from pydantic import Field

from microplane.config.section import Knobs


class ServeKnobs(Knobs):
    """What a server takes on at once."""

    max_batch: int = Field(64, ge=1, description="answers that are written together")
    batch_tokens: int = Field(
        65536, ge=16, description="tokens of prompts and answers that a batch has room for; it bounds the memory"
    )
    queue: int = Field(256, ge=0, description="answers that may wait; more are refused with 429")
    timeout: float = Field(600.0, gt=0, description="seconds after which a request is given up, waiting included")
    max_tokens: int = Field(512, ge=1, description="tokens of an answer at most, where its request does not say")
    max_body: int = Field(4 << 20, ge=1, description="bytes of a request at most")
    grace: float = Field(60.0, ge=0, description="seconds for what still runs when the server is told to end")

    @property
    def at_once(self) -> int:
        """Answers that are written or wait, at most."""
        return self.max_batch + self.queue
