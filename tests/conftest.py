"""Fixtures of many tests: a small sample corpus, rendered and decoded once; a vocabulary; tiny
models and corpora."""

import os

# Before torch is imported: tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Lines of the log are the same at any time.
os.environ.setdefault("ALPRO_LOG_TIMES", "0")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # before Prefect is imported
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")

import gc
import json
import multiprocessing
import select
import shutil
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

from alpro.errors import InputError
from tests.clip_models import clip_folders, hub  # noqa: F401 - fixtures
from tests.order import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_xdist_make_scheduler,
)
from tests.program import run_program
from tests.range_server import RangeServer

ROOT = Path(__file__).parents[1]

# The same examples each time: CI is not red by chance.
settings.register_profile("busy machine", derandomize=True, deadline=None)
settings.load_profile("busy machine")

# A process that was forked after a flow ran, such as a loading process, would stop Prefect's
# services at exit and fail, because it does not have them.
os.register_at_fork(after_in_child=threading._threading_atexits.clear)


# How many are read, written or computed together: so few that a small corpus or index has several
# groups of each.
SMALL = {
    "shards.reader.ROWS_PER_BATCH": 8,
    "shards.sources.tables.PARQUET_BATCH_ROWS": 2,
    "inference.index_videos.CHUNK": 2,
    "inference.index_videos.MAX_UNIT": 2,
}


def pytest_configure() -> None:
    """An editable installation of another checkout would be tested instead of this one."""
    # Found, not imported: it imports torch, which the processes that tests start need not have.
    models = find_spec("alpro.models")
    assert models
    assert models.origin
    assert Path(models.origin).is_relative_to(ROOT), (
        f"{models.origin} is not of {ROOT}: make install"
    )

    # In a new environment the first import of a module compiles it. All processes of `-n` import
    # the tests in one order, so each would compile everything; the second one begins at the other
    # end, and each finds half compiled.
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        for name in (
            "alpro.pipeline",
            "prefect",
            "mlflow.tracking",
            "scipy.stats",
            "pandas",
            "spacy",
        ):
            import_module(name)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """The modules of the tests and all that they import are never garbage: to look for it among them
    took a tenth of the collection and a twentieth of the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def small_groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SMALL.items():
            patch.setattr(f"alpro.{name}", size)
        yield


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """build_once(name, build): a folder that build(folder) fills in the first of the processes of
    `-n` that needs it.

    Tests do not write into it.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        out = root / f"shared-{name}"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                unfinished = root / f"unfinished-{name}"
                shutil.rmtree(unfinished, ignore_errors=True)  # a build that failed
                unfinished.mkdir()
                build(unfinished)
                unfinished.rename(out)
        return out

    return folder


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """free_port(): a port of this machine that nothing listens on.

    It is below those that the kernel gives to others who ask for any, and each process of the tests
    has its own: what the port is for may bind it seconds later.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + 1_000 * worker + os.getpid() % 500
    ports = iter(range(first, first + 500))

    def find() -> int:
        for port in ports:
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port
        raise AssertionError("no free port")

    return find


@pytest.fixture(scope="session")
def two_ranks(free_port) -> Callable[..., list[int]]:
    """two_ranks(program, *arguments): runs it as the two processes of a job; their exit statuses.

    They are forks of a process that has imported torch, and what DistributedDataParallel imports,
    which takes three seconds of computing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["alpro.stages.train_prompter", "torch._dynamo"])

    def run(program: Path, *arguments: object) -> list[int]:
        words = [str(argument) for argument in arguments]
        # As if each had a machine of its own: no more than the choice of a device may depend on a
        # local rank.
        job = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        both = []
        for rank in range(2):
            environment = job | {"RANK": str(rank), "LOCAL_RANK": "0"}
            process = context.Process(
                target=run_program, args=(str(program), words, environment)
            )
            process.start()
            both.append(process)

        try:
            for process in both:
                process.join()
            return [process.exitcode for process in both]
        finally:
            for process in both:
                process.kill()

    return run


@pytest.fixture(scope="session")
def wait_for_end() -> Callable[[int], None]:
    """wait_for_end(process): returns when a process of any parent has ended; fails after two
    minutes."""

    def wait(process: int) -> None:
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            return
        ended, _, _ = select.select([handle], [], [], 120)
        os.close(handle)
        assert ended, f"process {process} goes on"

    return wait


@pytest.fixture(scope="module")
def cluster(request) -> Iterator[Any]:
    """A scheduler and a worker with two threads, or the number that a test names, in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1,
        threads_per_worker=getattr(request, "param", 2),
        processes=False,
        dashboard_address=None,
        protocol="tcp",
        host="127.0.0.1",
    ) as started:
        yield started


@pytest.fixture
def inline_pool() -> Iterator[None]:
    """Stages whose units run in a pool run them in this process."""
    from alpro.pool import in_this_process

    with in_this_process():
        yield


@pytest.fixture(scope="session")
def resources():
    from alpro.stages.execution.interface import Resources

    return Resources(workers=1, device="cpu", checkpoint_interval=3600)


@pytest.fixture(scope="session")
def sample(build_once, resources) -> Path:
    """A small rendered sample corpus."""
    from alpro.stages import render_sample

    config = render_sample.Config(
        lessons=6, clips=16, stills=12, validation=8, test=8, size=48, frames=8, seed=1
    )
    return build_once(
        "sample",
        lambda out: render_sample.run(config, render_sample.Inputs(), out, resources),
    )


@pytest.fixture(scope="session")
def decode_sample(sample, resources) -> Callable[..., Path]:
    """decode_sample(out, corpus, resources=..., **config): decodes a corpus of the sample into a
    folder."""
    from alpro.stages import decode_videos

    def decode(out: Path, corpus: str, resources=resources, **changes) -> Path:
        config = decode_videos.Config(
            **{"manifest": f"{corpus}.jsonl", "frames": 8, "size": 40, **changes}
        )
        decode_videos.run(
            config, decode_videos.Inputs.of({"sample": sample}), out, resources
        )
        return out

    return decode


def decode_data(config: Any, data: Path | str, out: Path, resources: Any) -> Any:
    """Decodes data of a user's, which is imported before, as the plan does. Returns the outcome."""
    from alpro.shards.sources.manifest import import_source
    from alpro.stages import decode_videos

    manifest = import_source(data, out / "parts").folder
    return decode_videos.run(
        config, decode_videos.Inputs(manifest=manifest), out, resources
    )


def decoded(corpus: str, **config: Any) -> Any:
    """A fixture of a decoded corpus of the sample."""

    @pytest.fixture(scope="session", name=corpus)
    def folder(build_once, decode_sample) -> Path:
        from alpro.pool import in_this_process

        with in_this_process():  # a process would take seconds to start
            return build_once(corpus, lambda out: decode_sample(out, corpus, **config))

    return folder


clips = decoded("clips", samples_per_shard=16)
lessons = decoded("lessons")
stills = decoded("stills")


@pytest.fixture(scope="session")
def corpora(clips, lessons, stills) -> dict[str, Path]:
    return {"clips": clips, "lessons": lessons, "stills": stills}


@pytest.fixture(scope="session")
def vocabulary(build_once, corpora, resources) -> Path:
    """What build_vocabulary and train_tokenizer make of the sample, in one folder: 8 entities and a
    tokenizer."""
    from alpro.stages import build_vocabulary, train_tokenizer

    def build(out: Path) -> None:
        build_vocabulary.run(
            build_vocabulary.Config(entities=8),
            build_vocabulary.Inputs.of(corpora),
            out,
            resources,
        )
        train_tokenizer.run(
            train_tokenizer.Config(word_pieces=300),
            train_tokenizer.Inputs.of(corpora),
            out,
            resources,
        )

    return build_once("vocabulary", build)


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(vocabulary / "tokenizer.json"))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """tiny_model(vocab_size=..., dropout=...): the configuration of a model that takes
    milliseconds."""
    from alpro.models.alpro import ModelConfig

    video = {
        "image_size": 32,
        "patch_size": 8,
        "frames": 4,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "drop_path": 0.0,
    }
    text = {"width": 32, "depth": 2, "fusion_layer": 1, "heads": 2, "max_length": 32}
    values = {"video": video, "embed_dim": 16, "temperature": 0.2, "init": "scratch"}

    def config(vocab_size: int = 300, dropout: float = 0.0) -> ModelConfig:
        return ModelConfig.model_validate(
            values | {"text": text | {"vocab_size": vocab_size, "dropout": dropout}}
        )

    return config


@pytest.fixture(scope="session")
def folders(
    build_once, tiny_model, vocabulary, tokenizer, resources
) -> dict[str, Path]:
    """The folders of a random model of each task, as in artifacts, and the prompts of the
    prompter."""

    def build(root: Path) -> None:
        import torch

        from alpro.models.alpro import Alpro, Prompter
        from alpro.models.folder import ModelBundle
        from alpro.stages import cache_prompts

        config = tiny_model(tokenizer.get_vocab_size())
        torch.manual_seed(0)
        for folder in (
            ModelBundle("prompter", Prompter(config), tokenizer),
            ModelBundle(
                "pretrain", Alpro(config, 8), tokenizer, entities=list("abcdefgh")
            ),
            ModelBundle("retrieval", Alpro(config), tokenizer),
            ModelBundle(
                "qa",
                Alpro(config, answers=3),
                tokenizer,
                answers=["ball", "box", "left"],
            ),
        ):
            folder.save_pretrained(root / folder.task / "model")
        inputs = {"prompter": root / "prompter", "vocabulary": vocabulary}
        (root / "prompts").mkdir()
        cache_prompts.run(
            cache_prompts.Config(),
            cache_prompts.Inputs.of(inputs),
            root / "prompts",
            resources,
        )

    root = build_once("folders", build)
    return {
        name: root / name
        for name in ("prompter", "pretrain", "retrieval", "qa", "prompts")
    }


@pytest.fixture(scope="session")
def videos(sample) -> list[Path]:
    """Three test videos of the sample."""
    return sorted((sample / "videos").glob("test-*.mp4"))[:3]


@pytest.fixture(scope="session")
def training() -> Callable[..., Any]:
    """training(corpora, steps, group_batches=..., **changes): a TrainingConfig
    of one phase."""
    from alpro.stages.training.config import TrainingConfig

    def config(
        corpora: Iterable[str] = ("clips",), steps: int = 4, **changes
    ) -> TrainingConfig:
        phase: dict[str, Any] = {"corpora": tuple(corpora), "steps": steps}
        if "group_batches" in changes:
            phase["group_batches"] = changes.pop("group_batches")
        values = {
            "batch_size": 8,
            "lr": 1e-3,
            "warmup_ratio": 0.25,
            "max_text_tokens": 24,
            "log_every": 2,
        }
        return TrainingConfig.model_validate({"phases": [phase], **values, **changes})

    return config


@pytest.fixture(scope="session")
def corpus_of() -> Callable[..., Path]:
    """corpus_of(folder, rows): a decoded corpus, without videos.

    A row is a dict with an id and, where they matter, split, kind, group, captions, questions, meta
    and `frames`, an array (T, H, W, 3). By default a video has 6 frames of 8 x 8 noise, an image
    one.
    """
    import pyarrow.parquet as pq

    from alpro.shards.clip import Clip
    from alpro.shards.schema import Row
    from alpro.shards.writer import ShardWriter, index_shard

    def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(5)
        with ShardWriter(folder / "all.tar", 95) as writer:
            for values in rows:
                defaults = {
                    "path": Path(values["id"]),
                    "kind": "video",
                    "split": "train",
                    "group": values["id"],
                }
                row = Row(
                    **defaults
                    | {key: value for key, value in values.items() if key != "frames"}
                )
                noise = rng.integers(
                    0, 256, (6 if row.kind == "video" else 1, 8, 8, 3), dtype=np.uint8
                )
                frames = values.get("frames", noise)
                writer.write(row, Clip(frames, 1.0, *frames.shape[2:0:-1]))
        pq.write_table(index_shard(folder / "all.tar"), folder / "index.parquet")
        return folder

    return write


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., tuple[str, ThreadingHTTPServer]]]:
    """served(folder, ranges=True): the URL of a folder, and the server, whose `asked` are the
    requests so far."""
    servers = []

    def serve(
        folder: Path = tmp_path, ranges: bool = True
    ) -> tuple[str, ThreadingHTTPServer]:
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(RangeServer, directory=str(folder))
        )
        server.asked = []
        server.ranges = ranges
        servers.append(server)
        # `shutdown` waits for a poll.
        serve_forever = partial(server.serve_forever, poll_interval=0.02)
        threading.Thread(target=serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def write_lines(file: Path, rows: Iterable[Any]) -> Path:
    """Writes a file of JSON Lines, and returns it."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@contextmanager
def one_line(
    *parts: str, of: type[Exception] | tuple[type[Exception], ...] = InputError
) -> Iterator[Any]:
    """The block raises an error of one line that contains all parts."""
    with pytest.raises(of) as error:
        yield error
    assert "\n" not in str(error.value)
    assert [part for part in parts if part not in str(error.value)] == [], str(
        error.value
    )


def in_store(*files: Path) -> None:
    """Copies files into the folder of `memory`."""
    for file in files:
        fsspec.filesystem("memory").pipe_file(
            f"/bucket/corpus/{file.name}", file.read_bytes()
        )


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of an object store in this process, empty before and after."""
    system = fsspec.filesystem("memory")

    def clear() -> None:
        system.store.clear()
        system.pseudo_dirs[:] = [""]

    clear()
    yield "memory://bucket/corpus"
    clear()
