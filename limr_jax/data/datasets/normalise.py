"""Rows of the public sets, however their sources write them, as one kind of row.

Sources differ in the names of columns and in where the answer is: in a column, behind
``####``, in the solution's last box. A row comes out as `id`, `problem`, `answer` (the
reference proof where there is no answer), `verifiable` (whether a rule can check the
answer), and all its other columns as they were.
"""

import csv
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator

from limr_jax.data import jsonl
from limr_jax.data.boxed import reference_answer
from limr_jax.errors import InputError, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# What the sources call each column; the first that a row has is taken.
_PROBLEM = ("problem", "question", "prompt", "Problem")
_PROBLEM += ("nl_statement", "informal_statement")
_ANSWER = ("answer", "final_answer")
_REFERENCE = ("reference", "nl_proof", "informal_proof", "Solution")
_ID = ("id", "unique_id", "problem_name", "Problem ID", "idx", "ID")
_SUBJECT = ("subject", "type", "subfield", "Category", "problem_type")
_AGAIN = "remove it, and it is downloaded again"
# What NuminaMath writes where there is no answer that a rule could check.
_NO_ANSWER = ("", "proof", "notfound", "not found")


def read(path: pathlib.Path, suffix: str | None = None) -> Iterator[tuple[str, dict]]:
    """Yields (place, row) of a file, or of all files below a folder, by name.

    `suffix` says what kind of file it is where its name does not.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
        if not files:
            raise InputError(f"{path}: no file of {', '.join(SUFFIXES)} below it")
        for file in files:
            yield from read(file)
        return
    if not path.is_file():
        raise InputError(f"{path}: no file that can be read; fetch it again")
    suffix = suffix or path.suffix
    if suffix in (".jsonl", ".json"):
        yield from jsonl.read_rows(path)
    elif suffix == ".csv":
        yield from _read_csv(path)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise InputError(f"{path}: {suffix!r} is none of {', '.join(SUFFIXES)}")


def read_zip(path: pathlib.Path, folder: str) -> Iterator[tuple[str, dict]]:
    """Yields (place, row) of each JSON file in a folder of an archive, by name.

    Not unpacked: TFDS needs TensorFlow for that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                # Below a top folder, which GitHub names by repository and branch.
                if f"/{folder}/" in name and name.endswith(".json"):
                    where = f"{path}:{name}"
                    row = jsonl.parse(archive.read(name), where, _AGAIN)
                    yield where, jsonl.as_object(row, where, _AGAIN)
    # NotImplementedError: packed in a way that Python has not; RuntimeError: a
    # password.
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{path}: not an archive of JSON files ({error}); {_AGAIN}"
        ) from None


def _read_csv(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), start=1):
                # DictReader keeps cells too many under None, and has None for cells too
                # few.
                if None in row or None in row.values():
                    raise InputError(
                        f"{path} row {number}: not as many cells as the first line has "
                        "names; fetch the file again"
                    )
                yield f"{path} row {number}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not CSV in UTF-8 ({error}); fetch the file again"
        ) from None


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow.parquet  # only NuminaMath comes as Parquet
    except ImportError:
        raise InputError(
            f"{path}: Parquet needs the package pyarrow; run pip install pyarrow"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    # Times, decimals and bytes become texts: JSON has none of them.
                    row = json.loads(json.dumps(row, default=str))
                    yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not Parquet ({shown(error, limit=200)}); fetch the file again"
        ) from None


def normalise(row: dict, where: str, prefix: str, index: int) -> dict:
    """One row of any source as id, problem, answer, verifiable, columns."""
    row = dict(row)  # `_take` takes columns out
    jsonl.check_row(row, where)
    jsonl.check_level(row.get("level"), where)
    name = _take(row, _ID)
    name = index if name is None else name
    name = jsonl.text_field({"id": name}, "id", where, numbers=True)
    problem = _take(row, _PROBLEM)
    if not isinstance(problem, str) or not problem:
        raise InputError(f"{where}: no problem in {', '.join(_PROBLEM)}; check the row")
    answer = _text(_take(row, _ANSWER), f"{where}: the answer")
    # "9 * 8 = 72\n#### 72" is solution and answer in one; "1,000" is 1000.
    if answer and (parts := re.fullmatch(r"(?s)(.*)\n#### (.+)", answer)):  # GSM8K
        row.setdefault("solution", answer)
        answer = parts[2].replace(",", "").strip()
    reference = _text(_take(row, _REFERENCE), f"{where}: the reference")
    if reference:
        row["reference"] = _proof(reference)
    # MATH has the answer in its solution alone.
    if answer is None and isinstance(row.get("solution"), str):
        answer = reference_answer(row["solution"])
    # NuminaMath's columns; a source without them counts as checked.
    verifiable = (answer or "").strip().lower() not in _NO_ANSWER and all(
        row.get(field, "Yes") == "Yes"
        for field in ("problem_is_valid", "solution_is_valid")
    )
    if row.get("question_type") == "proof":
        verifiable = False
    subject = _take(row, _SUBJECT)
    if subject is not None:
        row["subject"] = subject
    if "level" in row:
        row["level"] = _level(row["level"])
    return {
        # A local copy may have its prefix already.
        "id": name if prefix and name.startswith(prefix) else prefix + name,
        "problem": problem,
        "answer": answer or row.get("reference") or "",
        "verifiable": bool(verifiable),
        "columns": row,
    }


def _take(row: dict, names) -> object:
    """The first of these columns that is there, taken out of the row."""
    column = next((name for name in names if row.get(name) is not None), None)
    return None if column is None else row.pop(column)


def _text(value, what: str) -> str | None:
    return None if value is None else jsonl.answer_text(value, what)


def _level(value) -> int | str | None:
    """MATH's 'Level 5' is 5."""
    match = re.fullmatch(r"(?:Level )?(\d{1,9})", str(value))
    return int(match[1]) if match else value


def _proof(text: str) -> str:
    """A proof without the LaTeX environment around it."""
    match = re.fullmatch(r"(?s)\s*\\begin\{proof\}(.*)\\end\{proof\}\s*", text)
    return (match[1] if match else text).strip()
