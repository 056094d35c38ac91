"""Steps that make corpora: of the rendered sample, of the user's files, or of existing shards."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan.digests import Digests, digest_manifest, digest_shards
from alpro.pipeline.store.step import Step
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.storage import located
from alpro.stages.execution.interface import StageConfig
from alpro.stages.index_shards import Config as IndexConfig


def corpus_steps(
    corpora: Mapping[str, Corpus], sample: Step | None, digests: Digests
) -> dict[str, Step]:
    """Return the step that makes each corpus, by the corpus's name.

    The contents of the user's files are part of a step's fingerprint. A step's `unreadable` says
    why they cannot be read on this machine.

    Args:
        sample: the step that renders the sample.
    """
    steps = {}
    for name, corpus in corpora.items():
        stage = "decode_videos"
        config: StageConfig = corpus.decoding
        if corpus.shards:
            stage = "index_shards"
            config = IndexConfig(
                kinds=corpus.kinds, max_reject_share=corpus.max_reject_share
            )
        step = Step(stage, f"{stage} {name}", config)
        if corpus.manifest and sample:
            steps[name] = replace(step, inputs={"sample": sample})
        elif corpus.shards or corpus.data:
            try:
                steps[name] = with_files(step, corpus, digests)
            except InputError as error:
                # The proposed block names this corpus.
                block = f"[corpora.{name}.columns]"
                reason = str(error).replace("[corpora.data.columns]", block)
                steps[name] = replace(step, unreadable=reason)
    return steps


def with_files(step: Step, corpus: Corpus, digests: Digests) -> Step:
    """Return the step that indexes existing shards, or that decodes the user's files, with their
    digest. Tables are imported here, once; the stage reads the manifest.

    Its `recheck` reads the files again; None for files at a URL, since a store may describe the same
    file differently each time.

    Raises:
        InputError: If the files cannot be read.
    """
    place = located(corpus.shards or corpus.data)
    manifest = None if corpus.shards else import_corpus(corpus, digests.manifests)

    def read_digest(manifest: Manifest | None, ask: bool) -> str:
        """ask: Ask the stores of files at URLs; otherwise, their last answers count."""
        if manifest is None:
            return digest_shards(place, digests)
        return digest_manifest(manifest, digests, ask)

    digest = read_digest(manifest, ask=True)

    def is_unchanged() -> bool:
        try:
            again = manifest and import_corpus(corpus, digests.manifests)
            return read_digest(again, ask=False) == digest
        except InputError:  # they cannot be read any more
            return False

    return replace(
        step,
        given={"manifest": manifest.folder} if manifest else {"shards": place},
        digests={"data" if manifest else "shards": digest},
        recheck=is_unchanged if isinstance(place, Path) else None,
    )


def import_corpus(corpus: Corpus, folder: Path) -> Manifest:
    """Import the user's files, or find what an earlier import of them left in a folder."""
    root = Path(corpus.root) if corpus.root else None
    return import_source(
        located(corpus.data), folder, corpus.annotation_files, root, corpus.columns
    )
