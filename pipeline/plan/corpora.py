"""Steps that make corpora: of the rendered sample, of the user's files, or of existing shards."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan.digests import Digests, digest_manifest, digest_shards
from alpro.pipeline.store.step import Step
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.storage import Location, located
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
        if corpus.manifest and sample:
            inputs = {"sample": sample}
            steps[name] = Step(
                "decode_videos", f"decode_videos {name}", corpus.decoding, inputs
            )
        elif corpus.shards:
            steps[name] = index_step(name, corpus, digests)
        elif corpus.data:
            steps[name] = decode_step(name, corpus, digests)
    return steps


def index_step(name: str, corpus: Corpus, digests: Digests) -> Step:
    """Return the step that indexes existing shards."""
    shards = located(corpus.shards)
    config = IndexConfig(kinds=corpus.kinds, max_reject_share=corpus.max_reject_share)
    step = Step(
        "index_shards", f"index_shards {name}", config, given={"shards": shards}
    )

    def read_digest(ask: bool) -> str:
        return digest_shards(shards, digests)

    return with_digest(step, "shards", read_digest, is_local=isinstance(shards, Path))


def decode_step(name: str, corpus: Corpus, digests: Digests) -> Step:
    """Return the step that decodes the user's files. They are imported here, once; the stage reads
    the manifest."""
    data = located(corpus.data)
    sources: dict[str, Location] = {"data": data}
    for split, files in corpus.annotation_files.items():
        for number, file in enumerate(files, 1):
            sources[split if number == 1 else f"{split}.{number}"] = file
    if corpus.root:
        sources["root"] = Path(corpus.root)
    step = Step(
        "decode_videos", f"decode_videos {name}", corpus.decoding, imported_from=sources
    )

    try:
        manifest = import_corpus(corpus, digests.manifests)
    except InputError as error:
        # The proposed block names this corpus.
        block = f"[corpora.{name}.columns]"
        return replace(
            step, unreadable=str(error).replace("[corpora.data.columns]", block)
        )

    def read_digest(ask: bool) -> str:
        return digest_manifest(import_corpus(corpus, digests.manifests), digests, ask)

    is_local = all(isinstance(path, Path) for path in sources.values())
    step = replace(step, given={"manifest": manifest.folder})
    return with_digest(step, "data", read_digest, is_local)


def import_corpus(corpus: Corpus, folder: Path) -> Manifest:
    """Import the user's files, or find what an earlier import of them left in a folder."""
    root = Path(corpus.root) if corpus.root else None
    return import_source(
        located(corpus.data), folder, corpus.annotation_files, root, corpus.columns
    )


def with_digest(
    step: Step, key: str, read_digest: Callable[[bool], str], is_local: bool
) -> Step:
    """Return a step with the digest of its files; its `unreadable` says why they cannot be read.

    Its `recheck` reads them again; None for files at a URL, since a store may describe the same
    file differently each time.

    Args:
        read_digest: Takes whether to ask the stores of files at URLs, or to use their last answers.
        is_local: Whether none of the files is at a URL.
    """
    try:
        digest = read_digest(True)
    except InputError as error:
        return replace(step, unreadable=str(error))

    def is_unchanged() -> bool:
        try:
            return read_digest(False) == digest
        except InputError:  # they cannot be read any more
            return False

    return replace(
        step, digests={key: digest}, recheck=is_unchanged if is_local else None
    )
