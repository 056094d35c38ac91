"""The steps that make corpora: of the rendered sample, of the user's files, or of shards that are
there already."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import Corpus
from alpro.pipeline.plan.digests import Digests, digest_manifest, digest_shards
from alpro.pipeline.store.artifacts import Step
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.storage import Location, located
from alpro.stages.index_shards import Config as IndexConfig


def corpus_steps(
    corpora: Mapping[str, Corpus], built: Mapping[str, Step], digests: Digests
) -> dict[str, Step]:
    """The step that makes each corpus, by the corpus's name. built: the steps before them, by
    stage.

    The contents of the user's files are part of a step's fingerprint. Its `missing` says why they
    cannot be read on this machine.
    """
    steps = {}
    for name, corpus in corpora.items():
        if corpus.manifest:
            inputs = {"sample": built["render_sample"]}
            steps[name] = Step("decode_videos", f"decode_videos {name}", corpus.decoding, inputs)
        elif corpus.shards:
            steps[name] = index_step(name, corpus, digests)
        else:
            steps[name] = decode_step(name, corpus, digests)
    return steps


def index_step(name: str, corpus: Corpus, digests: Digests) -> Step:
    """The step that indexes existing shards."""
    shards = located(corpus.shards)
    config = IndexConfig(kinds=corpus.kinds, max_reject_share=corpus.max_reject_share)
    step = Step("index_shards", f"index_shards {name}", config, paths={"shards": shards})

    try:
        contents = digest_shards(shards, digests)
    except InputError as error:
        return replace(step, missing=str(error))

    def unchanged() -> bool:
        try:
            return digest_shards(shards, digests) == contents
        except InputError:  # they cannot be read any more
            return False

    # Shards at a URL are not checked again: a store may describe the same file differently each
    # time.
    is_local = isinstance(shards, Path)
    return replace(step, files={"shards": contents}, unchanged=unchanged if is_local else None)


def decode_step(name: str, corpus: Corpus, digests: Digests) -> Step:
    """The step that decodes the user's files. They are imported here, once; the stage reads the
    manifest."""
    data = located(corpus.data)
    sources: dict[str, Location] = {"data": data, **corpus.annotation_files}
    if corpus.names_root:
        sources["root"] = corpus.names_root

    step = Step("decode_videos", f"decode_videos {name}", corpus.decoding, sources=sources)

    def imported() -> Manifest:
        return import_source(data, digests.manifests, corpus.annotation_files, corpus.names_root)

    try:
        manifest = imported()
        contents = digest_manifest(manifest, digests)
    except InputError as error:
        return replace(step, missing=str(error))

    def unchanged() -> bool:
        try:
            # Of rows at URLs, the identities of the last time, for the reason below.
            return digest_manifest(imported(), digests, ask=False) == contents
        except InputError:  # they cannot be read any more
            return False

    # A corpus at a URL is not checked again: a store may describe the same file differently each
    # time.
    is_local = all(isinstance(path, Path) for path in sources.values())
    return replace(
        step,
        files={"data": contents},
        paths={"manifest": manifest.folder},
        unchanged=unchanged if is_local else None,
    )
