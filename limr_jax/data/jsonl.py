"""JSON and JSON lines in, with the file and the place in every complaint.

One rule of what a row may hold, wherever it comes from: a JSONL file, a JSON array, or
a local copy of a public set.
"""

import decimal
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from limr_jax.errors import InputError, shown


def read_bytes(path) -> bytes:
    """The bytes of a regular file.

    InputError: there is none, it is something else (a pipe would never end), or it
    cannot be read.
    """
    path = pathlib.Path(path)
    try:
        if path.is_file():
            return path.read_bytes()
        if path.is_symlink() and not path.exists():
            problem = f"a link to {path.readlink()}, which is not there"
        elif path.is_dir():
            problem = "a directory, not a file"
        else:
            problem = "not a regular file" if path.exists() else "no such file"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise InputError(f"{path}: {problem}; check path and rights") from None


def read_object(path) -> dict:
    """The object that a JSON file holds, otherwise InputError."""
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); fetch the file again") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds no JSON object; fetch the file again")
    return document


def read_rows(path) -> Iterator[tuple[str, dict]]:
    """Yields (place, object) for each row of a file, in order.

    A row is a line that is not blank; in a file called `.json` also an element of the
    array, or the one object, that the file is.
    InputError: the file cannot be read, or a row is not UTF-8, not JSON, no object.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".json":
            document = _document(path)
            if document is not None:
                yield from document
                return
        # As bytes: what is not UTF-8 is then the fault of one line, which is named.
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    row = parse(line, where, "write one JSON object a line")
                    yield where, as_object(row, where, "write one JSON object a line")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a directory; give a .jsonl file in it") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); check path and rights"
        ) from None


def _document(path: pathlib.Path) -> list[tuple[str, dict]] | None:
    """The rows of a file that is one array or one object; None: it has JSON lines."""
    try:
        document = parse(path.read_bytes(), str(path), "fetch the file again")
    except InputError as error:
        cause = error.__cause__
        # json's word for text behind the first value: the first line of several.
        if isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data":
            return None
        raise InputError(str(error)) from None
    rows = document if isinstance(document, list) else [document]
    places = [f"{path} row {number}" for number in range(1, len(rows) + 1)]
    return [
        (where, as_object(row, where, "write an array of JSON objects"))
        for where, row in zip(places, rows, strict=True)
    ]


def parse(text: bytes, where: str, remedy: str) -> Any:
    """The JSON value that UTF-8 bytes are; InputError names the place and the byte.

    Windows' byte order mark before it is no part of it.
    """
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if text.startswith(b"\x1f\x8b"):
            raise InputError(f"{where}: is gzip; unpack the file (gunzip)") from None
        raise InputError(
            f"{where}: not UTF-8 (byte {text[error.start]:#04x} at {error.start}); "
            "save the file as UTF-8"
        ) from None
    # ValueError also for a number of more than 4,300 digits, which Python does not
    # read; RecursionError for brackets that are too deep.
    except (ValueError, RecursionError) as error:
        # `_document` asks which of these it was.
        raise InputError(f"{where}: not JSON ({error}); {remedy}") from error


def as_object(value, where: str, remedy: str) -> dict:
    """The value itself if it is a JSON object, otherwise InputError."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON {_kind(value)}, not an object; {remedy}")
    return value


def check_row(row: dict, where: str) -> None:
    """InputError unless all that the row holds can be written again as UTF-8 JSON.

    A lone surrogate, in whichever column, would end a run when its row is dumped.
    """
    # All at once; the column at fault is looked for only where there is one.
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        for name, value in row.items():
            text_value(name, f"{where}: the name of a field")
            written = (
                value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False)
            )
            text_value(written, f"{where}: the field {name!r}")
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be kept ({error}); mend the row") from None


def check_level(level, where: str) -> None:
    """InputError unless it is a number, a text or null: figures are given by it."""
    # A whole number may be beyond the largest float, too.
    number = is_number(level) and abs(level) <= sys.float_info.max
    if not (number or level is None or isinstance(level, str)):
        raise InputError(
            f"{where}: the level {shown(json.dumps(level), limit=40)} is none that "
            "figures can be given by; write a number or a text"
        )


def text_field(row: dict, field: str, where: str, numbers: bool = False) -> str:
    """The field's text; with `numbers` a whole number is taken as its digits.

    InputError: it is absent, no text, or holds a lone surrogate, which no UTF-8 has.
    """
    if field not in row:
        raise InputError(f"{where}: the field {field!r} is missing; add it")
    value = row[field]
    # 7.0 is "7". inf and nan leave no 0, and are refused as no text.
    if numbers and is_number(value) and value % 1 == 0:
        value = number_text(value)
    return text_value(value, f"{where}: the field {field!r}")


def answer_text(value, what: str) -> str:
    """A reference answer as text.

    27 and 27.0 are "27", 0.5 is "0.5", and a list is its items with commas between.
    InputError: anything else that is not text, what JSON does not have (NaN) included.
    """
    if isinstance(value, list):
        return ",".join(answer_text(item, f"{what}: an item") for item in value)
    # isfinite would make a float of a whole number, which may be too large for one.
    if isinstance(value, float) and not math.isfinite(value):
        return text_value(value, what)
    return number_text(value) if is_number(value) else text_value(value, what)


def is_number(value) -> bool:
    """Whether it is a JSON number: Python's booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number_text(value: int | float) -> str:
    """A finite number in digits, without an exponent: 27.0 is "27", 1e-7 "0.0000001".

    The shortest digits that are read back as the same number.
    """
    if value % 1 == 0:
        return str(int(value))
    # By way of repr: Decimal(0.1) itself has 55 decimals.
    return format(decimal.Decimal(repr(value)), "f")


def text_value(value, what: str) -> str:
    """The value itself if it is a text that UTF-8 can write, else an InputError."""
    if not isinstance(value, str):
        raise InputError(f"{what} is a JSON {_kind(value)}, not text; quote it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} holds a lone surrogate at character {error.start}; remove it"
        ) from None
    return value


def _kind(value) -> str:
    if isinstance(value, bool):
        return "boolean"
    if is_number(value):
        return "number"
    names = {dict: "object", list: "array", str: "string", type(None): "null"}
    return names.get(type(value), type(value).__name__)
