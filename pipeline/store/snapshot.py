"""The artifacts of a store as they were read once, and what was built from what."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from alpro.artifact import Record, artifacts
from alpro.names import Artifact


class Snapshot:
    """The artifacts of a store, whose records are read once.

    A command that asks several questions about a store asks one snapshot. It does not see what is
    built or removed later.
    """

    def __init__(self, root: Path):
        self.root = root

    @cached_property
    def artifacts(self) -> list[Artifact]:
        """Every artifact with its record, oldest first."""
        return artifacts(self.root)

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """The fingerprints of each artifact's inputs, by its own."""
        inputs = {}
        for _, record in self.artifacts:
            sources = record.inputs.values()
            inputs[record.fingerprint] = [source.fingerprint for source in sources]
        return inputs

    def ancestors(self, fingerprints: Iterable[str]) -> set[str]:
        """Return the fingerprints of artifacts and of all that they were built from.

        What a removed artifact was built from is not known.
        """
        reached: set[str] = set()
        pending = [*fingerprints]
        while pending:
            fingerprint = pending.pop()
            if fingerprint not in reached:
                reached.add(fingerprint)
                pending += self._inputs.get(fingerprint, ())
        return reached

    def lineage(self, record: Record) -> list[Artifact]:
        """Return an artifact, and all that it was built from and that was not removed since, oldest
        first."""
        reached = self.ancestors([record.fingerprint])
        return [one for one in self.artifacts if one[1].fingerprint in reached]

    def dependents(self, fingerprints: set[str]) -> list[Artifact]:
        """Return the artifacts that were built from others, without these."""
        users = []
        for folder, record in self.artifacts:
            built_from = self.ancestors([record.fingerprint])
            is_user = record.fingerprint not in fingerprints
            if is_user and not fingerprints.isdisjoint(built_from):
                users.append((folder, record))
        return users

    def unreachable(self, fingerprints: Iterable[str]) -> list[Artifact]:
        """Return the artifacts that none of these was built from, newest first, so that users come
        before their inputs."""
        reached = self.ancestors(fingerprints)
        return [
            one for one in reversed(self.artifacts) if one[1].fingerprint not in reached
        ]
