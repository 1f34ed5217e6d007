"""Which column plays which role: by name where there are names, else by position."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.data.blocks import Block
from luthier.data.list_columns import are_rankings, list_role
from luthier.errors import DataError, nearest
from luthier.spec import CSVOptions, Form

#: Names that are understood, each with the part it plays. ``second`` to ``first`` is what a
#: positive is to its anchor.
KNOWN: dict[str, tuple[str, ...]] = {
    "first": (
        "anchor", "query", "question", "premise", "sentence1", "sentence_1", "sentence_a",
        "text1", "text_1", "text_a", "item1", "item_1", "item_a",
    ),
    "second": (
        "positive", "pos", "document", "doc", "passage", "answer", "response", "hypothesis",
        "sentence2", "sentence_2", "sentence_b", "text2", "text_2", "text_b",
        "item2", "item_2", "item_b",
    ),
    "score": ("score", "similarity", "similarity_score", "finetuner_score"),
    "margin": ("margin", "teacher_margin", "finetuner_margin"),
    "label": ("label", "labels", "class", "category", "target", "intent", "finetuner_label"),
    "text": ("text", "sentence", "content", "item", "utterance"),
}  # fmt: skip
_PART = {name: part for part, names in KNOWN.items() for name in names}
_NEGATIVE = re.compile(r"(?:hard_)?neg(?:ative)?s?_?(\d*)")
_ID = re.compile(r"|_?id|idx|index|guid|uuid|row|unnamed:_0|__index_level_0__|\w+_id")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")

VALUE_ROLES = ("label", "score", "margin", "relevance", "weight", "irrelevant")


@dataclass(frozen=True)
class Roles:
    """The form of the data, and for each role the index of its column, in order."""

    form: Form
    columns: dict[str, int]
    shown: dict[str, str]


def part_of(name: str) -> str | None:
    """The part that a column of this name plays, or None for an unknown name.

    >>> part_of("Sentence-A"), part_of("hard_negative_3"), part_of("flavour")
    ('first', 'negative_3', None)
    """
    plain = re.sub(r"[\s\-.]+", "_", name.strip().lower())
    if found := _NEGATIVE.fullmatch(plain):
        return f"negative_{int(found[1] or 1)}"
    return _PART.get(plain)


def looks_like_header(cells: Sequence[str], options: CSVOptions, file: str) -> bool:
    """Whether a first row holds names, when nobody said so. Raises DataError when in doubt."""
    wanted = [c for c in (options.columns or {}).values() if isinstance(c, str)]
    if wanted:
        return set(wanted) <= {cell.strip() for cell in cells}
    try:
        if _by_name(list(cells), file) is not None:
            return True
    except DataError:
        pass  # some cells are known names, but they do not fit together: told below
    known = [cell for cell in cells if part_of(cell)]
    if known and not options.columns:
        raise DataError(
            f"cannot tell whether the first row holds names or data: {_quoted(known)} "
            f"{'is a known name' if len(known) == 1 else 'are known names'}, "
            f"but the whole row, {_quoted(cells)}, names no form of data",
            file=file, row=1,
            hint="csv_options: header=False if it is data; "
            "header=True with columns={role: name} if it holds names",
        )  # fmt: skip
    return False


def resolve(names: Sequence[str] | None, sample: Block, options: CSVOptions, file: str) -> Roles:
    """The form and the roles of the columns. Raises DataError with a hint when in doubt."""
    width = len(sample.columns)
    if names is not None and list(names) == [str(i) for i in range(width)]:
        names = None  # tuples and data frames without names number their columns
    if options.columns and are_rankings(list(options.columns)):
        return _rankings_by_choice(options.columns, names, width, file)
    if options.columns:
        return _by_choice(options.columns, names, width, file)
    if names is None:
        return _by_position(sample, options.is_labeled, file)
    if are_rankings(names) and not options.is_labeled:
        return _rankings(list(names), file)
    mapping = _by_name(list(names), file)
    if mapping is None and options.is_labeled and width == 2:
        return _made("labelled", {"text": 0, "label": 1}, names)
    if mapping is None:
        raise _unmatched(names, file)
    if options.is_labeled and mapping.form != "labelled":
        raise DataError(
            f"is_labeled says item and label, but the columns {_quoted(names)} are {mapping.form}",
            file=file,
            hint="leave is_labeled out, or say header=False if the first row is data",
        )
    return mapping


def _made(form: Form, columns: dict[str, int], names: Sequence[str] | None) -> Roles:
    shown = {role: names[i] if names else f"column {i + 1}" for role, i in columns.items()}
    return Roles(form, columns, shown)


def _by_name(names: list[str], file: str) -> Roles | None:
    """The mapping when every column is known and they make a form; None when they do not."""
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        part = part_of(name)
        if part is None:
            if _ID.fullmatch(re.sub(r"\s+", "_", name.strip().lower())):
                continue  # a row's number or id is no text to learn from
            return None
        if part in found:
            raise DataError(
                f"the columns {_quoted([names[found[part]], name])} play the same part",
                file=file, hint=_columns_hint(names),
            )  # fmt: skip
        found[part] = index
    form = _form_of(found)
    return _made(form, _roles(form, found), names) if form else None


def _rankings(names: list[str], file: str) -> Roles:
    """The query and the lists of searches; a column that is none of them is refused."""
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        role = list_role(name) or ("query" if part_of(name) == "first" else None)
        if role is None and _ID.fullmatch(re.sub(r"\s+", "_", name.strip().lower())):
            continue
        if role is None or role in found:
            wrong = "matches no role" if role is None else f"is a second '{role}'"
            raise DataError(
                f"the column '{name}' {wrong} of rankings", file=file, hint=_RANKINGS_HINT
            )
        found[role] = index
    return _ordered(found, names, file)


def _rankings_by_choice(
    chosen: Mapping[str, str | int], names: Sequence[str] | None, width: int, file: str
) -> Roles:
    found: dict[str, int] = {}
    for role, column in chosen.items():
        known = list_role(role) or ("query" if part_of(role) == "first" else None)
        if known is None or known in found:
            why = "no role of rankings is called" if known is None else "given twice:"
            message = f"csv_options.columns: {why} {role!r}"
            raise DataError(message, file=file, hint=f"roles: query, {', '.join(_LISTS)}")
        found[known] = _place(role, column, names, width, file)
    if len(set(found.values())) < len(found):
        raise DataError("csv_options.columns: two roles share a column", file=file)
    return _ordered(found, names, file)


_LISTS = ("items", "relevance", "weight", "score", "irrelevant")


def _ordered(found: dict[str, int], names: Sequence[str] | None, file: str) -> Roles:
    if "query" not in found:
        raise DataError("rankings need a column with the query", file=file, hint=_RANKINGS_HINT)
    roles = {role: found[role] for role in ("query", *_LISTS) if role in found}
    return _made("rankings", roles, names)


def _form_of(found: Mapping[str, int]) -> Form | None:
    negatives = [part for part in found if part.startswith("negative_")]
    rest = set(found) - set(negatives)
    numbered = sorted(int(n.removeprefix("negative_")) for n in negatives)
    if numbered != list(range(1, len(numbered) + 1)):
        return None
    if negatives:
        if rest == {"first", "second", "margin"} and len(negatives) == 1:
            return "margin"
        return "triplets" if rest == {"first", "second"} else None
    if rest in ({"first", "second", "score"}, {"first", "second", "label"}):
        return "scored"
    if rest == {"first", "second"}:
        return "pairs"
    if rest in ({"text", "label"}, {"first", "label"}, {"second", "label"}):
        return "labelled"
    return None


def _roles(form: Form, found: Mapping[str, int]) -> dict[str, int]:
    """Canonical roles in canonical order."""
    negatives = {k: found[k] for k in sorted(found, key=_number) if k.startswith("negative_")}
    if form == "labelled":
        text = next(found[part] for part in ("text", "first", "second") if part in found)
        return {"text": text, "label": found["label"]}
    if form == "scored":
        score = found["score"] if "score" in found else found["label"]
        return {"sentence1": found["first"], "sentence2": found["second"], "score": score}
    columns = {"anchor": found["first"], "positive": found["second"]} | negatives
    return columns | ({"margin": found["margin"]} if form == "margin" else {})


def _number(part: str) -> int:
    return int(part.rpartition("_")[2]) if part.startswith("negative_") else 0


def _by_choice(
    chosen: Mapping[str, str | int], names: Sequence[str] | None, width: int, file: str
) -> Roles:
    found: dict[str, int] = {}
    for role, column in chosen.items():
        part = part_of(role)
        if part is None:
            known = ["anchor", "positive", "negative", "text", "label", "score", "margin",
                     "sentence1", "sentence2"]  # fmt: skip
            raise DataError(
                f"csv_options.columns: no role is called {role!r}",
                file=file, hint=nearest(role, known) or f"roles: {', '.join(known)}",
            )  # fmt: skip
        if part in found:
            raise DataError(f"csv_options.columns: {role!r} is given twice", file=file)
        found[part] = _place(role, column, names, width, file)
    if len(set(found.values())) < len(found):
        raise DataError("csv_options.columns: two roles share a column", file=file)
    form = _form_of(found)
    if form is None:
        raise DataError(
            f"csv_options.columns: the roles {_quoted(list(chosen))} make no form of data",
            file=file, hint=FORMS_HINT,
        )  # fmt: skip
    return _made(form, _roles(form, found), names)


def _place(role: str, column: str | int, names: Sequence[str] | None, width: int, file: str) -> int:
    if isinstance(column, int):
        if 1 <= column <= width:
            return column - 1
        message = f"csv_options.columns: {role!r} is column {column}; there are {width}"
        raise DataError(message, file=file, hint="columns count from 1")
    if names is None:
        message = f"csv_options.columns: {role!r} is {column!r}, but the columns have no names"
        raise DataError(message, file=file, hint="give header=True, or the column's number from 1")
    places = [i for i, name in enumerate(names) if name == column]
    if len(places) != 1:
        how = "no column is" if not places else "two columns are"
        raise DataError(
            f"csv_options.columns: {how} called {column!r}",
            file=file, hint=nearest(column, names) or f"columns: {_quoted(names)}",
        )  # fmt: skip
    return places[0]


FORMS_HINT = (
    "forms: text, label · anchor, positive · anchor, positive, negative_1, … · "
    "sentence1, sentence2, score · anchor, positive, negative_1, margin · "
    "query, items, relevance (lists)"
)
_RANKINGS_HINT = (
    "csv_options columns={'query': …, 'items': …, 'relevance': …} says which to use "
    "(the others are left out)"
)


def _by_position(sample: Block, is_labeled: bool, file: str) -> Roles:
    width = len(sample.columns)
    if width < 2:
        raise DataError("one column; data needs two or more", file=file, hint=FORMS_HINT)
    if is_labeled:
        if width != 2:
            message = f"is_labeled expects two columns, item and label; there are {width}"
            raise DataError(message, file=file, hint="csv_options: columns={'text': 1, 'label': 2}")
        return _made("labelled", {"text": 0, "label": 1}, None)
    pair = {"anchor": 0, "positive": 1}
    if width == 2:
        return _made("pairs", pair, None)
    last_is_number = width <= 4 and _numeric(sample, file)
    if last_is_number and width == 3:
        return _made("scored", {"sentence1": 0, "sentence2": 1, "score": 2}, None)
    if last_is_number:
        return _made("margin", pair | {"negative_1": 2, "margin": 3}, None)
    negatives = {f"negative_{i - 1}": i for i in range(2, width)}
    return _made("triplets", pair | negatives, None)


def _numeric(sample: Block, file: str) -> bool:
    """Whether the last column is all numbers; DataError when it is only in part."""
    number, column = len(sample.columns), sample.columns[-1]
    values = column if isinstance(column, list) else column.to_pylist()
    flags = [_is_number(value) for value in values]
    if any(flags) and not all(flags):
        place = flags.index(False)
        shown = f"{values[place]!r:.60}"
        raise DataError(
            f"some cells of this column are numbers and some, such as {shown}, are not: "
            "are they scores, or texts of a triplet?",
            file=file, row=sample.lines()[place], column=number, hint=_numbers_hint(number),
        )  # fmt: skip
    return bool(flags) and all(flags)


def _numbers_hint(number: int) -> str:
    text = "'anchor': 1, 'positive': 2, 'negative_1': 3"
    if number == 3:
        return (
            "header=True if the first row holds names; else say which: "
            f"columns={{'sentence1': 1, 'sentence2': 2, 'score': 3}} or columns={{{text}}}"
        )
    return f"say which: columns={{{text}, 'margin': 4}} or columns={{{text}, 'negative_2': 4}}"


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unmatched(names: Sequence[str], file: str) -> DataError:
    unknown = [name for name in names if part_of(name) is None]
    known = [name for name in names if part_of(name)]
    if unknown:
        message = f"columns that match no role: {_quoted(unknown)}"
        message += f" (known: {_quoted(known)})" if known else ""
    else:
        message = f"the columns {_quoted(names)} make no form of data"
    return DataError(message, file=file, hint=_columns_hint(names))


def _columns_hint(names: Sequence[str]) -> str:
    first, second = [*names, "…", "…"][:2]
    return (
        f"say which to use: csv_options columns={{'anchor': {first!r}, 'positive': {second!r}}} "
        f"(the others are left out); {FORMS_HINT}"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name[:60]}'" for name in names)
