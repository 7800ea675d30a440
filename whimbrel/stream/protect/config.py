"""How a stream protects the guest's writes against a rollback."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from whimbrel.model.endpoint import FileEndpoint, Frozen, MemoryEndpoint, NbdEndpoint

ProtectMode = Literal["none", "mirror", "journal"]


class ProtectConfig(Frozen):
    """``none``: writes stay at the target. ``mirror``: each is acknowledged when it is durable in the shadow too.

    ``journal``: it is acknowledged when a local journal has it, and reaches the shadow within the lag.
    """

    mode: ProtectMode = "none"
    shadow: Annotated[NbdEndpoint | FileEndpoint | MemoryEndpoint, Field(discriminator="kind")] | None = None
    """The overlay at the source, writable and as long as the disk. Must be there from the stream's first write on."""
    journal_path: str | None = None
    """Directory of the journal's segments, next to the target; None: ``<map_stem>.journal``."""
    max_lag_bytes: int = Field(default=256 << 20, gt=0)
    """Journal: so many acknowledged bytes may be missing in the shadow; above, writes wait."""
    max_lag_s: float = Field(default=10.0, gt=0)
    """Journal: so old may the oldest acknowledged write be that is missing in the shadow; above, writes wait."""

    @model_validator(mode="after")
    def _has_a_shadow(self) -> ProtectConfig:
        if (self.mode == "none") != (self.shadow is None):
            raise ValueError("a shadow is given with the modes mirror and journal, and only with them")
        if self.shadow is not None and not self.shadow.writable:
            raise ValueError("the shadow must be writable")
        return self
