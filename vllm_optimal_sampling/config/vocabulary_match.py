"""Two tokenizers compared token by token: what is shared, what is paired by its role, and how far they disagree."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vllm_optimal_sampling.config.sample_text import SAMPLE_TEXT
from vllm_optimal_sampling.config.token_roles import TokenRoles
from vllm_optimal_sampling.config.vocabulary_pairs import NO_PARTNER, VocabularyPairs
from vllm_optimal_sampling.params import shown

if TYPE_CHECKING:
    from vllm.tokenizers import TokenizerLike

EXAMPLES = 3
"""Tokens that a message lists."""

ADDED = "\0"
"""Before an added token that is no `PLAIN` text."""

PLAIN = re.compile(r"[!-~]+")
"""Every tokenizer writes these characters as themselves."""


@dataclass(frozen=True)
class VocabularyMatch:
    """The tokens of a teacher and a theta.

    Attributes:
        pairs: of ids.
        shared: number of tokens that are the same string in both.
        by_role: the role, and both strings, of tokens that are paired by what they are for.
        teacher_alone, theta_alone: the tokens without a partner.
    """

    pairs: VocabularyPairs
    shared: int
    by_role: list[tuple[str, str, str]]
    teacher_alone: list[str]
    theta_alone: list[str]

    @property
    def is_identity(self) -> bool:
        """Whether every id of the teacher's model is theta's too, so that nothing is to be done."""
        partners = self.pairs.partners
        return bool((partners == np.arange(len(partners))).all())

    def summary(self) -> str:
        """One line for the log."""
        roles = "".join(
            f"; {role} is {shown(mine)} for the teacher and {shown(theirs)} for theta, which are paired"
            for role, mine, theirs in self.by_role
        )
        alone = [
            f"{len(tokens)} of {whose} {'has' if len(tokens) == 1 else 'have'} no partner ({_examples(tokens)})"
            for whose, tokens in (("the teacher's tokens", self.teacher_alone), ("theta's", self.theta_alone))
            if tokens
        ]
        rest = f"; {', '.join(alone)}: q* never draws them" if alone else ""
        return f"{self.shared} tokens are shared{roles}{rest}"


def match_vocabularies(
    teacher: TokenizerLike,
    theta: TokenizerLike,
    sizes: tuple[int, int],
    roles: tuple[TokenRoles, TokenRoles],
) -> VocabularyMatch:
    """Pair tokens of the same string, then those of the same role where one of the two has no partner.

    Args:
        teacher, theta: the tokenizers.
        sizes: ids of the two models, padding included.
        roles: of the two models' tokens.
    """
    mine, theirs = _ids_by_meaning(teacher, sizes[0]), _ids_by_meaning(theta, sizes[1])
    partners = np.full(sizes[0], NO_PARTNER, dtype=np.int64)
    taken: dict[int, int] = {}
    # Where one id has several strings, the one at its own place comes first.
    for token, token_id in sorted(mine.items(), key=lambda item: theirs.get(item[0]) != item[1]):
        partner = theirs.get(token)
        if partner is not None and partner not in taken and partners[token_id] == NO_PARTNER:
            partners[token_id] = partner
            taken[partner] = token_id
    shared = len(taken)
    names = [{token_id: token.removeprefix(ADDED) for token, token_id in ids.items()} for ids in (mine, theirs)]
    by_role = []
    for role, first, second in (
        ("end of turn", roles[0].turn, roles[1].turn),
        ("end of text", roles[0].text, roles[1].text),
        ("begin of text", roles[0].begin, roles[1].begin),
    ):
        if first not in names[0] or second not in names[1] or partners[first] == second:
            continue
        has_first, has_second = partners[first] != NO_PARTNER, second in taken
        # What ends an answer is worth a pair of equal strings: theta may have both, and end its answers with the other.
        if (has_first and has_second) or ((has_first or has_second) and role != "end of turn"):
            continue
        if has_first:
            del taken[int(partners[first])]
        if has_second:
            partners[taken[second]] = NO_PARTNER
        shared -= has_first + has_second
        partners[first] = second
        taken[second] = first
        by_role.append((role, names[0][first], names[1][second]))
    alone = [token_id for token_id in sorted(names[0]) if partners[token_id] == NO_PARTNER]
    texts = {token_id: text for token_id in alone if (text := _text_for(theta, teacher, token_id, sizes[1]))}
    # Padding has no meaning, and theta reads its own at the same place.
    same_padding = {
        token_id: (token_id,) for token_id in range(min(sizes)) if token_id not in names[0] and token_id not in names[1]
    }
    return VocabularyMatch(
        VocabularyPairs(partners, {**texts, **same_padding}, _unknown(theta, roles[1], sizes[1])),
        shared,
        by_role,
        [names[0][token_id] for token_id in alone],
        [names[1][token_id] for token_id in sorted(names[1]) if token_id not in taken],
    )


def _ids_by_meaning(tokenizer: TokenizerLike, size: int) -> dict[str, int]:
    """Ids by token, of those that a model has ids for.

    Added tokens are plain text, and others are pieces in the tokenizer's own writing: where the two may differ, an added
    token is marked.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        f"{ADDED}{token}" if token_id in added and not PLAIN.fullmatch(token) else token: token_id
        for token, token_id in tokenizer.get_vocab().items()
        if token_id < size
    }


def _text_for(theta: TokenizerLike, teacher: TokenizerLike, token_id: int, size: int) -> tuple[int, ...]:
    """Theta's ids of the text of one of the teacher's tokens; empty where it is no text by itself."""
    added = getattr(teacher, "added_tokens_decoder", {}).get(token_id)
    text = teacher.decode([token_id]) if added is None else str(added)
    if not text or "\ufffd" in text:
        return ()
    ids = tuple(int(theirs) for theirs in theta.encode(text, add_special_tokens=False))
    return ids if all(theirs < size for theirs in ids) else ()


def _unknown(theta: TokenizerLike, roles: TokenRoles, size: int) -> int:
    candidates = (getattr(theta, "unk_token_id", None), theta.pad_token_id, roles.text, roles.turn, 0)
    return next(int(token_id) for token_id in candidates if token_id is not None and token_id < size)


# How far two tokenizers disagree


def disagreement(teacher: TokenizerLike, theta: TokenizerLike, pairs: VocabularyPairs) -> float:
    """The share of the sample text that the two do not have in common, in [0, 1].

    The larger of two: of the ids that either tokenizer uses, those without a partner; of the tokens of the text, those
    that the other tokenizer does not make of it.
    """
    mine = teacher.encode(SAMPLE_TEXT, add_special_tokens=False)
    theirs = theta.encode(SAMPLE_TEXT, add_special_tokens=False)
    paired = {int(partner) for partner in pairs.partners} - {NO_PARTNER}
    read = [int(pairs.partners[token_id]) if token_id < len(pairs.partners) else NO_PARTNER for token_id in mine]
    lost_ids = max(
        _share([read_as == NO_PARTNER for read_as in dict(zip(mine, read, strict=True)).values()]),
        _share([token_id not in paired for token_id in set(theirs)]),
    )
    common = (Counter(read) & Counter(theirs)).total()
    return max(lost_ids, 1 - common / max(len(mine), len(theirs), 1))


def _share(flags: list[bool]) -> float:
    return sum(flags) / max(len(flags), 1)


def merges_differ(teacher: TokenizerLike, theta: TokenizerLike) -> bool:
    """Whether the two are byte-pair encodings with different merges: other tokenizers, whatever their tokens."""
    states = [_model_state(tokenizer) for tokenizer in (teacher, theta)]
    if states[0] is None or states[1] is None or states[0] == states[1]:
        return False
    models: list[Mapping[str, Any]] = [json.loads(state) for state in states if state is not None]
    return models[0]["type"] != models[1]["type"] or models[0].get("merges") != models[1].get("merges")


def _model_state(tokenizer: TokenizerLike) -> bytes | None:
    """The model of a tokenizer of the library `tokenizers`, as JSON."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = getattr(getattr(backend, "model", None), "__getstate__", lambda: None)()
    return state if isinstance(state, bytes) else None


def _examples(tokens: list[str]) -> str:
    listed = ", ".join(shown(token) for token in tokens[:EXAMPLES])
    return listed if len(tokens) <= EXAMPLES else f"{listed}, ..."
