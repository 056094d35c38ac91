"""What was built from what, among the artifacts of a store."""

from collections.abc import Iterable, Sequence

from alpro.artifact import Record
from alpro.names import Artifact


def ancestors(artifacts: Sequence[Artifact], fingerprints: Iterable[str]) -> set[str]:
    """Return the fingerprints of artifacts and of all that they were built from.

    What a removed artifact was built from is not known.
    """
    inputs = {record.fingerprint: record.inputs for _, record in artifacts}
    reached: set[str] = set()
    pending = [*fingerprints]
    while pending:
        fingerprint = pending.pop()
        if fingerprint not in reached:
            reached.add(fingerprint)
            sources = inputs.get(fingerprint, {}).values()
            pending += [source.fingerprint for source in sources]
    return reached


def lineage(artifacts: Sequence[Artifact], record: Record) -> list[Artifact]:
    """Return an artifact, and all that it was built from and that was not removed since, in the order
    of `artifacts`."""
    reached = ancestors(artifacts, [record.fingerprint])
    return [one for one in artifacts if one[1].fingerprint in reached]


def unreachable(
    artifacts: Sequence[Artifact], fingerprints: Iterable[str]
) -> list[Artifact]:
    """Return the artifacts that none of these was built from, the last one first, so that users come
    before their inputs."""
    reached = ancestors(artifacts, fingerprints)
    return [one for one in reversed(artifacts) if one[1].fingerprint not in reached]
