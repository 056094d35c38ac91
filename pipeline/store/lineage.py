"""What was built from what, among the artifacts of a store."""

from collections.abc import Iterable, Sequence

from alpro.artifact import Artifact


def lineage(
    artifacts: Sequence[Artifact], fingerprints: Iterable[str]
) -> list[Artifact]:
    """Return the artifacts of these fingerprints and all that they were built from, in the order of
    `artifacts`.

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
    return [one for one in artifacts if one[1].fingerprint in reached]
