"""The command line: run a pipeline or one stage, look at what there is, open MLflow."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any

from pipeline.launch import Interrupted
from shards.schema import InputError
from shards.storage import is_url, located
from stages.artifacts import CONTINUE, STAGES, StageFailed, Step, Store

MISTAKE = 2
TASKS = ("pretrain", "retrieval", "qa", "prompter")


def main() -> None:
    """Entry point. Mistakes that a person can mend are one line and exit status 2."""
    arguments = parser().parse_args()
    try:
        status = arguments.call(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"{error}; run the same command again to continue", file=sys.stderr)
        sys.exit(CONTINUE)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    sys.exit(status or 0)


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    top = argparse.ArgumentParser(
        prog="alpro",
        description="Captioned videos to a video-language model, the ALPRO way, stage by stage. Start with: alpro run",
        epilog="Every stage keeps its result; running again makes only what is missing or what a change touched.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    whole = commands.add_parser(
        "run", help="run the whole pipeline", description="Runs every stage whose result is not there yet."
    )
    add_run_options(whole)
    whole.set_defaults(call=run_pipeline, stage="")
    for stage in STAGES:
        text = STAGE_HELP[stage]
        one = commands.add_parser(
            stage.replace("_", "-"),
            help=text,
            description=f"{text[0].upper()}{text[1:]}; makes first what it needs and is not there.",
        )
        add_run_options(one)
        one.set_defaults(call=run_pipeline, stage=stage)
    listing = commands.add_parser("ls", help="list the artifacts: what made them and what uses them")
    listing.set_defaults(call=list_artifacts)
    showing = commands.add_parser("show", help="show one artifact: configuration, inputs, counts, metrics")
    showing.add_argument("fingerprint", help="the first characters of its fingerprint, as `alpro ls` prints it")
    showing.set_defaults(call=show_artifact)
    inspecting = commands.add_parser(
        "inspect",
        help="what is in decoded corpora: counts, lengths, captions, test videos that training has too",
        description="Counts, lengths, captions, repeated captions, and how many test videos are in training too.",
    )
    inspecting.add_argument(
        "corpora",
        nargs="+",
        metavar="CORPUS",
        help="a decoded corpus: its fingerprint, as `alpro ls` prints it, or its folder or URL",
    )
    inspecting.add_argument("--out", type=Path, metavar="FOLDER", help="write inspect.json and sheets of frames there")
    inspecting.add_argument(
        "--looks",
        type=int,
        default=20_000,
        metavar="N",
        help="most samples whose frames are compared, validation's and test's first (default: 20000; 0: none)",
    )
    inspecting.set_defaults(call=inspect_corpora)
    add_import_options(
        commands.add_parser(
            "import-checkpoint",
            help="turn an official ALPRO checkpoint (.pt) into a model folder",
            description="Reads the tensors of a checkpoint of the official code, and nothing else of it, and writes a "
            "model folder, which `pretrained` in a configuration takes. A pre-training checkpoint's prompter goes to "
            "OUT/prompter.",
        )
    )
    page = commands.add_parser("ui", help="open the MLflow pages on this machine")
    page.add_argument("--port", type=port, default=5000, help="port to listen on (default 5000)")
    page.set_defaults(call=serve_mlflow)
    for command in (listing, showing, inspecting, page):
        command.add_argument(
            "--workspace", default="workspace", metavar="FOLDER", help="where artifacts lie (default: workspace)"
        )
    return top


STAGE_HELP = {
    "render_sample": "render the sample corpus",
    "decode_videos": "decode videos and images to shards of frames",
    "index_shards": "index existing shards, which stay where they are",
    "build_vocabulary": "take entities and word pieces from the captions",
    "train_prompter": "train the prompter by video-text contrast",
    "cache_prompts": "embed the prompts of every entity",
    "pretrain": "pre-train ALPRO with the frozen prompter",
    "finetune_retrieval": "fine-tune for text-video retrieval",
    "finetune_qa": "fine-tune for question answering",
    "evaluate": "evaluate every model once on the test split",
}


def port(text: str) -> int:
    """A port's number; argparse tells of a ValueError."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)


def add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="only say which stages would run and which are cached")
    command.add_argument(
        "--config",
        default="sample",
        metavar="NAME_OR_FILE",
        help="a configuration that ships, or a TOML file (default: sample)",
    )
    command.add_argument(
        "--data", default="", metavar="FOLDER_OR_MANIFEST", help="your videos, in the place of the configuration's"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="STAGE.KEY=VALUE",
        help="change one value, such as pretrain.lr=1e-4; repeatable",
    )
    command.add_argument(
        "--workspace",
        default="workspace",
        metavar="FOLDER",
        help="where artifacts, reports and the MLflow store lie (default: workspace)",
    )
    command.add_argument(
        "--profile", action="store_true", help="write a trace of a few steps of every training that runs, for Perfetto"
    )
    command.add_argument(
        "--tracking-uri", default="", metavar="URI", help="an MLflow server (default: a file in the workspace)"
    )


def add_import_options(importing: argparse.ArgumentParser) -> None:
    importing.add_argument("file", type=Path, metavar="FILE", help="the checkpoint")
    importing.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not exist yet")
    importing.add_argument("--task", required=True, choices=TASKS, help="what the checkpoint was trained for")
    importing.add_argument(
        "--tokenizer",
        default="bert-base-uncased",
        metavar="NAME_OR_FOLDER",
        help="its BERT's tokenizer: a hub name, a folder, a tokenizer.json or a vocab.txt (default: bert-base-uncased)",
    )
    importing.add_argument(
        "--words",
        type=Path,
        metavar="FILE",
        help="names of the entities (pretrain, prompter) or answers (qa) in the order of the head: a JSON list, JSON "
        "object of word to number (ans2label.json), or lines; without it they are numbered",
    )
    importing.add_argument(
        "--text-length",
        type=int,
        metavar="N",
        help="most word pieces of a text, as in its training (default: 30 for pretrain and prompter, 40 for retrieval "
        "and qa; the official DiDeMo model has 50)",
    )
    importing.set_defaults(call=run_import)


def run_pipeline(arguments: argparse.Namespace) -> int:
    """`alpro run` and `alpro STAGE`."""
    workspace = Path(arguments.workspace).resolve()
    if arguments.profile:
        arguments.changes.append("resources.profile=true")
    prepare_prefect(workspace)
    steps, store = planned(arguments, workspace)  # a mistake in what was asked is told before anything starts
    if arguments.dry_run:
        for step in steps:
            state = "cached" if store.find(step) else "to fetch" if store.is_shared(step) else "to run"
            print(f"{state:8} {step.name:24} {step.fingerprint[:16]}")
        return 0
    from pipeline import flow
    from pipeline.console import print_results

    chosen = getattr(flow, arguments.stage or "alpro")
    made = chosen(arguments.config, arguments.data, arguments.changes, str(workspace), arguments.tracking_uri)
    print_results({name: Path(folder) for name, folder in made.items()}, workspace)
    return 0


def planned(arguments: argparse.Namespace, workspace: Path) -> tuple[list[Step], Store]:
    """The steps that were asked for, in order, and where their artifacts lie."""
    from pipeline.config import asks_questions, load_config
    from pipeline.flow import needed, plan
    from stages.files import Digests

    config = load_config(arguments.config, arguments.data, arguments.changes)
    steps = plan(config, Digests(workspace / "digests.sqlite"))
    if arguments.data and not arguments.stage and not asks_questions(located(arguments.data)):
        print(f"question answering is left out: no questions in {arguments.data}", file=sys.stderr)
    steps = needed(steps, arguments.stage) if arguments.stage else steps
    return steps, Store(workspace / "artifacts", config.resources.artifacts)


def prepare_prefect(workspace: Path) -> None:
    """Where no Prefect server is named, one runs embedded for the time of the command, its files in the workspace."""
    home = workspace / "prefect"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--workspace {workspace}: {error.strerror}") from error
    os.environ["ALPRO_COMMAND_LINE"] = "1"
    # What goes wrong is told once, by `main`.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    if "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(home))


def list_artifacts(arguments: argparse.Namespace) -> int:
    """`alpro ls`."""
    from pipeline.console import print_artifacts

    print_artifacts(Store(Path(arguments.workspace) / "artifacts"))
    return 0


def show_artifact(arguments: argparse.Namespace) -> int:
    """`alpro show`."""
    from pipeline.console import print_artifact

    store = Store(Path(arguments.workspace) / "artifacts")
    print_artifact(store, *named(store, arguments.fingerprint))
    return 0


def named(store: Store, start: str) -> tuple[Path, dict[str, Any]]:
    """The artifact whose fingerprint begins so."""
    found = [(folder, manifest) for folder, manifest in store.all() if manifest["fingerprint"].startswith(start)]
    if len(found) != 1:
        what = "no artifact begins" if not found else f"{len(found)} artifacts begin"
        raise InputError(f"{start}: {what} with this in {store.root}; `alpro ls` lists them")
    return found[0]


def inspect_corpora(arguments: argparse.Namespace) -> int:
    """`alpro inspect`."""
    from pipeline.console import print_inspection
    from stages.inspect_corpus import inspect, save

    store = Store(Path(arguments.workspace) / "artifacts")
    folders = [
        located(name) if is_url(name) or Path(name).is_dir() else named(store, name)[0] for name in arguments.corpora
    ]
    found = inspect(folders, arguments.looks)
    print_inspection(found)
    if arguments.out:
        print(*save(found, folders, arguments.out), sep=", ")
    return 0


def run_import(arguments: argparse.Namespace) -> int:
    """`alpro import-checkpoint`."""
    from stages.import_checkpoint import import_checkpoint

    found = import_checkpoint(
        arguments.file,
        arguments.out,
        arguments.task,
        arguments.tokenizer,
        arguments.words,
        text_length=arguments.text_length,
    )
    video, text = found.config.video, found.config.text
    print(f"{arguments.out}: {found.read} tensors read")
    print(
        f"  video {video.image_size} x {video.image_size}, patch {video.patch_size}, {video.frames} frames, "
        f"{video.depth} blocks; text {text.fusion_layer} + {text.depth - text.fusion_layer} layers; width {video.width}"
    )
    for what, keys in (("nothing reads", found.unread), ("unknown", found.unknown)):
        if keys:
            print(f"  {what}: {len(keys)} tensors")
            print("".join(f"    {key}\n" for key in sorted(keys)), end="")
    for remark in found.remarks:
        print(f"  {remark}")
    return 0


def serve_mlflow(arguments: argparse.Namespace) -> int:
    """`alpro ui`: MLflow's server on this machine alone, until Ctrl-C."""
    database = Path(arguments.workspace).resolve() / "mlflow.db"
    if not database.is_file():
        raise InputError(f"{database}: no MLflow store there yet; `alpro run` makes one")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise InputError(
                f"port {arguments.port} is taken or not allowed ({error.strerror}); choose another with --port"
            ) from error
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    print(f"MLflow at http://127.0.0.1:{arguments.port} (Ctrl-C ends it)", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(arguments.port), "--workers", "1"]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
