"""Writes docs/cli.md from the commands themselves: `python -m docs.make_cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from talkforge.cli import app

HEAD = """# Command line

Every command has `--help`. Results go to stdout, progress, notes and errors to stderr. Exit codes: 0 finished
(inputs and clips that failed are rows), 1 the run could not finish, 2 a bad command, 3 damage found by `verify`,
130 interrupted, 143 terminated (SIGTERM, after which `train` saves and ends with 130).

Options of every command: `--quiet` (`-q`) leaves out progress and notes, `--verbose` (`-v`) logs every step
to stderr, `--log-file FILE` appends a detailed log to a file. `talkforge --version` prints the version,
`talkforge --install-completion` sets up completion for the shell.
"""

JSON = """## JSON

With `--json`, one document is written to stdout. Times are in seconds. Keys may be added, none is renamed.

| command | keys |
|---|---|
| `curate` | `dataset`, `dry_run`, the totals, `failures` (failures of each kind), `notes` (lines about what may be missed), `inputs_without_clips` (each `uri`, `status`, `reason`) |
| `curate --dry-run` | `dataset`, `dry_run`, `inputs` (`total`, `due`, `unreadable`: reason by name), `num_bytes`, `input_s`, `unknown_length`, `passed_over`, `measured_s`, `planned_s`, `weights` (`here`, `to_fetch`, and reasons by name: `missing` ends the run, `absent` does not) |
| `status` | `dataset`, `parts` (`done`, `total`), `measured_s`, `planned_s`, the totals, `exact`, `waiting_for_shard`, `decisions_not_selected` (of `review.parquet`) |
| `select` | `dataset`, `dry_run`, the totals, `notes`, `before` (the totals before), `changed_settings`, `waiting_for_shard`, `stale_shards` (shard: clips in it that are not accepted any more) |
| `verify` | `dataset`, `ok`, `problems` (each `path`, `what`), `removed`, and with --deep `deep` (`clips`, `compared`, `sources`, `unreachable`: reason by name, and the largest `frame_s`, `audio_s`, `av_s`); exit code 3 where there are any |
| `erase` | `dataset`, `dry_run`, `sha256`, `inputs`, `clips`, `samples`, `other_people`, `snapshots`, `tags`, `runs` (each `folder`, `snapshots`, `kind`: training run or export), `proof` (`files`, `num_bytes`, `found`: each `path`, `what`; null for a dry run); exit code 3 where anything is found |
| `sql` | `dataset`, `columns`, `types` (in DuckDB's words), `rows` (each column: value) |
| `diff` | `sides` (each `name`, `inputs`, `input_s`, `candidates`, `accepted`, `kept_s`, `people`, `videos`, `splits`), `settings` (one line each), `kept` (clips that both accept), `came`, `went` (each `clip_id`, `why`, `duration_s`), `why` (number of each reason), `changed` (column: clips), `reasons` (code: of each side), `measures` (each `field`, `label`, `unit`, `known`, `quantiles`) |
| `export` | `place`, `version` (of this document), `format`, `dataset`, `snapshot`, `snapshot_sha256`, `options`, `tool_version`, `complete`, `clips` (number of each split), `files`, `bytes`, `notes` |
| `snapshots` | `dataset`, `snapshots` (each `number`, `sha256` of its manifest, `current`, `tags`, `made_at`, `tool_version`, `shards`, `samples`, `num_bytes`, `own_bytes`), `removed` |
| `audit --result` | `dataset`, `seed`, `population`, `left_out`, `drawn`, `good`, `bad`, `accepted`, `accepted_labelled`, `precision`, `recall` (each `value` or null, `low`, `high`), `rules` (each `code`, `clips`, `labelled`, `precision`, `recall`, `only_clips`, `only_labelled`, `only_precision`), `accepted_bad` (clips by the label's reason) |
| `evaluate` | `version`, `tool_version`, `generated`, `reference`, `settings`, `videos` (measured pairs), `failed`, `unpaired` (reason by name), `metrics` (each `name`, `label`, `unit`, `better`, `generated`, `truth`, `difference` with `mean`, `low`, `high`, `count`, and `why_not`), `fid_frames`, `models`, `self_test` (`videos`, `versions`, `means`, `checks`: each `version`, `metric`, `expected`, `found`, `compared`, `passed`), `against` (`name`, `videos`, `metrics`); with --self-test the content of `self_test` |
| `ablate` | `config`, `settings`, `dataset`, `clips`, `steps`, `variants` (by name: `label`, `videos`, `figures`), `left_out` (reason by name) |
| `models` | `models`: each with `name`, `needed_by`, `file`, `num_bytes`, `source`, `licence`, `commercial_use`, `present`, `found`, `note` |

The totals are the same in every command and in the report: `inputs` (`total`, and the number of each status:
`measured`, `no_candidates`, `pending`, `duplicate`, `failed`), `input_s` (footage of all inputs), `clips`
(`candidates`, `accepted`, `rejected`, `failed`), `kept_s` (accepted clips), `reasons` (rejected clips by
reason) and `not_traced` (`clips`, `seconds`: rejected clips that these thresholds may accept, and that were
never traced). `exact` is false where parts or inputs came since the last selection: the totals then leave out
near duplicates and the choice of the speaker.
"""

SHARED = {"quiet", "verbose", "log_file", "help"}


def page() -> str:
    """The whole page."""
    root: Any = typer.main.get_command(app)
    return "\n".join([HEAD, *_sections(root, "talkforge"), JSON])


def _sections(group: Any, path: str) -> list[str]:
    found = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found += _sections(command, f"{path} {name}")
        else:
            found.append(_section(command, f"{path} {name}"))
    return found


def _section(command: Any, path: str) -> str:
    lines = [f"## {path}", "", command.callback.__doc__.strip().replace("\n    ", "\n"), "", "```"]
    lines += [*command.callback.examples, "```", ""]
    own = [option for option in command.params if option.name not in SHARED]
    if own:
        lines += ["| argument, option | |", "|---|---|", *map(_row, own), ""]
    return "\n".join(lines)


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    shown = names if option.opts[0].startswith("-") else f"`{option.metavar or option.name}`"
    cells = (shown, " ".join((option.help or "").split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(page(), encoding="utf-8")
