"""The languages of multilingual translation models: mBART, M2M100, NLLB and their kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem, SpecError, nearest


@dataclass(frozen=True)
class Language:
    """A language as a tokenizer names it, and the token that stands for it."""

    code: str
    token_id: int


def is_multilingual(tokenizer: Any) -> bool:
    """Whether a tokenizer has to be told the languages."""
    return hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")


def set_languages(model: Any, tokenizer: Any, source: str | None, target: str | None) -> None:
    """Tell a multilingual tokenizer and model what to translate into what.

    What is generated begins with the target's token (``forced_bos_token_id``). Raises SpecError
    for languages that are not given or not known.
    """
    problems: list[Problem] = []
    found = [
        _language(tokenizer, f"processing.{field}", name, problems)
        for field, name in (("source_lang", source), ("target_lang", target))
    ]
    if problems or found[0] is None or found[1] is None:
        raise SpecError(problems)
    tokenizer.src_lang, tokenizer.tgt_lang = found[0].code, found[1].code
    model.generation_config.forced_bos_token_id = found[1].token_id
    if model.generation_config.decoder_start_token_id is None:
        start = model.config.decoder_start_token_id
        model.generation_config.decoder_start_token_id = (
            found[1].token_id if start is None else start
        )


def _language(
    tokenizer: Any, field: str, name: str | None, problems: list[Problem]
) -> Language | None:
    known = [token for token in tokenizer.all_special_tokens if _is_language(token)]
    shown = ", ".join(sorted(known)[:12])
    if name is None:
        problems.append(Problem(field, "the model has to be told the language", f"as {shown}"))
        return None
    for token in (name, f"__{name}__"):
        found = tokenizer.convert_tokens_to_ids(token)
        if found is not None and found != tokenizer.unk_token_id and token in known:
            return Language(name, int(found))
    longer = [token for token in known if token.startswith(f"{name}_")]
    if len(longer) == 1:  # "en" for "en_XX"
        return Language(longer[0], int(tokenizer.convert_tokens_to_ids(longer[0])))
    bare = [token.strip("_") for token in known]
    problems.append(
        Problem(
            field, f"the model knows no language '{name}'", nearest(name, bare) or f"as {shown}"
        )
    )
    return None


def _is_language(token: str) -> bool:
    """``en_XX``, ``__en__`` and ``eng_Latn``, not ``<s>``."""
    return token.replace("_", "").isalpha() and "_" in token
