"""`alpro config ...` and `alpro data ...`: what a run reads, configurations and data."""

from cyclopts import App

from alpro.errors import InputError
from alpro.pipeline.cli.options import (
    WORKSPACE,
    Source,
    Workspace,
)

config_group = App(name="config", help="Show configurations.")
data_group = App(name="data", help="Check data before a run.")


@config_group.command(name="show")
def show_config(
    config: str, /, *, source: Source = Source(), workspace: Workspace = WORKSPACE
) -> None:
    """Print a configuration with all its values, as TOML.

    Args:
        config: A shipped configuration, or a TOML file, as for `alpro run --config`.
    """
    import tomli_w

    from alpro.pipeline.config.load import read_settings

    settings = read_settings(source.command(config, workspace))
    print(tomli_w.dumps(settings.as_written()), end="")


@data_group.command
def check(
    data: str,
    /,
    *,
    config: str = "own_videos",
    set: tuple[str, ...] = (),
) -> int:
    """Print the items, problems and splits of a data set.

    Reads every row of a manifest, folder or set of shards, and decodes a few items. The exit status
    is 1 if a run would fail.

    Args:
        data: Your videos, as for `alpro run --data`.
        config: The configuration whose decoding settings are used.
        set: Change a value, such as corpora.data.frames=16; repeatable.
    """
    from alpro.pipeline.config.command import DATA, Command, text_change
    from alpro.pipeline.config.load import read_settings
    from alpro.pipeline.plan.check_data import check_data
    from alpro.pipeline.reports.columns import print_rows
    from alpro.shards.sources.propose import UnknownColumns

    settings = read_settings(Command(config, (text_change(DATA, data), *set)))
    if settings.corpora["data"].shards:
        raise InputError(
            "`alpro data check` cannot check shards (corpora.data.shards); run `alpro run index_shards`"
        )

    try:
        report = check_data(settings)
    except UnknownColumns as error:
        lines = "\n  ".join(["With these columns, the first rows are:", *error.rows])
        print(f"{error}\n\n{lines}")
        return 2

    verdict = "a run would fail" if report.problems else "ready to run"
    print(f"{data}: {report.form}; {report.items:,} items; {verdict}")
    for problem in report.problems:
        print(f"problem: {problem}")
    print_rows(
        [
            {"split": split, **counts, "why_empty": ""}
            for split, counts in report.splits.items()
        ]
    )
    for finding in report.findings:
        print(f"  {finding}")
    return 1 if report.problems else 0
