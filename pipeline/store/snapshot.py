"""The artifacts of a store as they were read once, and what was built from what."""

from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path

from alpro.artifact import Record, artifacts

Artifact = tuple[Path, Record]  # its folder and its record


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
    def by_fingerprint(self) -> dict[str, Artifact]:
        """Every artifact by its fingerprint, oldest first."""
        return {record.fingerprint: (folder, record) for folder, record in self.artifacts}

    def lineage(self, record: Record) -> list[Artifact]:
        """Return an artifact and all that it was built from and that was not removed since, inputs
        before their users."""
        ordered: dict[str, Artifact] = {}

        def visit(fingerprint: str) -> None:
            # A removed artifact has no record: what it was built from is not known.
            if fingerprint in self.by_fingerprint and fingerprint not in ordered:
                artifact = self.by_fingerprint[fingerprint]
                for source in artifact[1].inputs.values():
                    visit(source.fingerprint)
                ordered[fingerprint] = artifact

        visit(record.fingerprint)
        return list(ordered.values())

    def dependents(self, folders: Collection[Path]) -> list[Artifact]:
        """Return the artifacts that were built from those in some folders, without these."""
        users: dict[str, list[str]] = {}
        for fingerprint, (_, record) in self.by_fingerprint.items():
            for source in record.inputs.values():
                users.setdefault(source.fingerprint, []).append(fingerprint)

        starts = {folder.resolve() for folder in folders}
        chosen = [
            record.fingerprint for folder, record in self.artifacts if folder.resolve() in starts
        ]
        reached = reach(chosen, users)
        return [
            (folder, record)
            for folder, record in self.artifacts
            if record.fingerprint in reached and record.fingerprint not in chosen
        ]

    def unreachable(self, kept: Iterable[str] = ()) -> list[Artifact]:
        """Return the artifacts that no kept one was built from, newest first, so that users come
        before their inputs.

        Args:
            kept: fingerprints; by default the newest artifact of each name.
        """
        # Oldest first: of a name, the newest record wins.
        newest = {record.name: record.fingerprint for _, record in self.artifacts}
        sources = {}
        for fingerprint, (_, record) in self.by_fingerprint.items():
            sources[fingerprint] = [source.fingerprint for source in record.inputs.values()]

        reached = reach([*kept] or [*newest.values()], sources)
        return [
            (folder, record)
            for folder, record in reversed(self.artifacts)
            if record.fingerprint not in reached
        ]

    def unfinished(self) -> list[Path]:
        """Return the folders of interrupted stages: they have no record, and the same stage
        continues in them."""
        finished = {folder for folder, _ in self.artifacts}
        return [
            folder
            for folder in sorted(self.root.glob("*/*"))
            if folder.is_dir() and folder not in finished
        ]


def reach(starts: Iterable[str], edges: dict[str, list[str]]) -> set[str]:
    """Return what can be reached from `starts` along edges, themselves included."""
    reached: set[str] = set()
    pending = [*starts]
    while pending:
        fingerprint = pending.pop()
        if fingerprint not in reached:
            reached.add(fingerprint)
            pending += edges.get(fingerprint, ())
    return reached
