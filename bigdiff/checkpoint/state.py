"""The run's clock and identity: all that a resume needs besides weights and optimizer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """Where a run stands. The data's whole state is `samples_seen`; random draws are computed from it."""

    step: int  # optimizer steps done
    samples_seen: int  # positions of the data order consumed

    def after(self, samples: int) -> "TrainState":
        """The state one optimizer step of `samples` later."""
        return TrainState(step=self.step + 1, samples_seen=self.samples_seen + samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be equal for a resume to continue the same run."""

    seed: int
    manifest: str  # of the latent sets: sha256 over those of their manifests
    total: int  # samples of a global batch
    order: str  # fingerprint of the data order

    def differences(self, saved: "Identity") -> list[str]:
        """Sentences for what differs from a saved run."""
        names = {
            "seed": "seed",
            "manifest": "the latent data (sha256 over the manifests)",
            "total": "batch.total",
            "order": "the data order (data.window, data.canonical_nodes or the sources' shares)",
        }
        return [
            f"{label} is {getattr(self, key)!r}, the checkpoint was made with {getattr(saved, key)!r}"
            for key, label in names.items()
            if getattr(self, key) != getattr(saved, key)
        ]
