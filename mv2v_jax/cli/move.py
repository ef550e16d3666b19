"""``mv2v move``: move a collection of a vector store through a map into a new collection."""

from pathlib import Path

import click

from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.guard import guard_rows, strict_option
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.lengths import dims_option, metric_option, warn_of_lengths, warn_of_other_metric
from mv2v_jax.cli.options import flag, option
from mv2v_jax.cli.output import print_facts, print_text, printable, progress_bar
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish, make_finish
from mv2v_jax.portable.numpy_map import PortableMap, load
from mv2v_jax.runs.moving.move import BATCH_ROWS, check_move, move, preview
from mv2v_jax.runs.moving.state import default_state
from mv2v_jax.similarity import Metric
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.open import open_store
from mv2v_jax.stores.protocol import ReadStore, Store
from mv2v_jax.stores.table import TableStore


@click.command(
    "move",
    cls=Command,
    arguments={
        "SOURCE": "Collection to read: a store such as lancedb:PATH/TABLE, or a table with ?id=COLUMN.",
        "MAP": "Map from the space of SOURCE, which mv2v align wrote.",
        "TARGET": "New collection to write, which must not exist.",
    },
    examples=[
        "mv2v move lancedb:db/docs map.safetensors lancedb:db/docs_new",
        "# What would happen, without writing anything.",
        "mv2v move chroma:db/docs map.safetensors chroma:db/docs_new --dry-run",
        "# For a collection that compares by dot product.",
        "mv2v move qdrant:db/docs map.safetensors qdrant:db/docs_new --metric dot",
        "# A new column beside the old one.",
        "mv2v move 'postgres:URL/t?vector=a' map.safetensors 'postgres:URL/t?vector=b'",
    ],
)
@click.argument("source_address", metavar="SOURCE")
@click.argument("map_file", metavar="MAP")
@click.argument("target_address", metavar="TARGET")
@metric_option
@dims_option
@flag("--inverse", help="SOURCE is in the target space of MAP; move it back into the source space.")
@strict_option
@flag("--dry-run", help="Check everything and say what would be done; write nothing.")
@flag("--resume", help="Continue an earlier run that was interrupted.")
@option(
    "--state",
    type=click.Path(path_type=Path),
    help="File that keeps the progress until the end. By default a hidden file in this folder, named by SOURCE and "
    "TARGET.",
)
@flag("--accept", help="Accept the map whatever its verdict.")
def move_command(
    source_address: str,
    map_file: str,
    target_address: str,
    metric: Metric,
    dims: int | None,
    inverse: bool,
    strict: bool,
    dry_run: bool,
    resume: bool,
    state: Path | None,
    accept: bool,
) -> None:
    """Move all rows of SOURCE through a map into a new collection.

    Ids, payloads, the metric and the settings of indexes are carried over. SOURCE stays as it is. Rows are written so
    that they can be searched with raw vectors of the encoder that the map leads to. A killed move continues with
    --resume and neither loses nor doubles a row. At the end both collections are compared.
    """
    linear_map = load(map_file)
    _check_verdict(linear_map, map_file, accept=accept)
    profiles = linear_map.profiles
    if inverse:
        linear_map = linear_map.invert()
    finish = make_finish(
        "target", metric, dims, linear_map.profiles[1], linear_map.W.shape[1], f"{map_file}; fit it again"
    )
    source, target = _open(source_address), open_store(parse_address(target_address))
    if source.name == target.name and parse_address(source_address).options == parse_address(target_address).options:
        raise InputError(f"{target.name} must be another collection than SOURCE; a collection is never moved in place")
    described = check_move(source, linear_map)
    rows = next(source.read(BATCH_ROWS)).vectors
    guard_rows(profiles, map_file, rows, source.name, inverse=inverse, strict=strict)
    warn_of_lengths(finish.profile, metric, rows, source.name)
    warn_of_other_metric(finish.profile, metric, described.compares_by, rows, source.name)
    if dry_run:
        _describe(source, linear_map, target, finish)
        return
    state = state or default_state(source_address, target_address)
    with progress_bar() as on_step:
        moved = move(source, linear_map, target, state, finish=finish, resume=resume, on_step=on_step)
    kept = f", {moved.num_kept:,} of them by an earlier run" if moved.num_kept else ""
    speed = moved.num_moved / max(moved.seconds, 1e-9)
    dimensions = f"{described.dims} to {dims or linear_map.W.shape[1]} dimensions"
    print_text(f"{moved.checked.rows:,} rows moved{kept}, {dimensions}, {speed:,.0f} rows per second.")
    recall = "" if moved.checked.recall is None else f", recall@10 of its index {moved.checked.recall:.3f}"
    checked = f"both have {moved.checked.rows:,} rows with the same ids; {moved.checked.sampled} rows compared"
    print_text(f"Checked: {checked}{recall}.")
    print_text(f"The way back: {source.name} is as it was; read from it again, and remove {target.name} by:")
    # Not wrapped, so that it can be copied.
    print(f"  {printable(moved.undo)}")


def _open(address: str) -> ReadStore:
    parsed = parse_address(address)
    return open_store(parsed) if parsed.store else TableStore(parsed)


def _check_verdict(linear_map: PortableMap, map_file: str, *, accept: bool) -> None:
    verdict = linear_map.metadata.get("verdict", Verdict.aligned.name)
    if accept or verdict == Verdict.aligned.name:
        return
    if verdict == Verdict.not_aligned.name:
        raise InputError(
            f"{map_file} must be a map that can be used, found the verdict not_aligned; mv2v info {map_file} shows "
            "why, and --accept moves all the same"
        )
    print_text(f"Warning: the fit of {map_file} was judged {verdict}; mv2v info {map_file} shows why.", to_stderr=True)


def _describe(source: ReadStore, linear_map: PortableMap, target: Store, finish: Finish) -> None:
    described, first = preview(source, linear_map, target, finish)
    names = ", ".join(sorted({str(name) for payload in first.dicts() for name in payload})) or "none"
    print_text("Nothing was written. A move would do this:")
    facts = {
        "read": source.name,
        "rows": f"{described.count:,}",
        "dimensions": f"{described.dims} to {first.vectors.shape[1]}",
        "metric": f"{described.metric}; the rows are written for {finish.metric}",
        "ids": described.id_name or "none: rows are told apart by their order",
        "carried over": names,
        "write": f"{target.name}, a new collection",
        "not carried over": "; ".join(described.notes) or "nothing",
        "the way back": target.undo(described),
    }
    print_facts(facts)
