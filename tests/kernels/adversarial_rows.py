"""Pairs of logits rows that are hard to mix, by family. Every pair is `(teacher, theta)`, float32, seeded."""

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def families(vocab: int, seed: int = 0) -> dict[str, list[Pair]]:
    """Three pairs of `vocab` tokens for each family."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float, size: int = vocab) -> torch.Tensor:
        return torch.randn(size, generator=generator) * scale

    def peaks(height: float, token: int, scale: float = 2.0) -> torch.Tensor:
        row = normal(scale)
        row[token] = height
        return row

    def masked(tokens: int) -> Pair:
        allowed = torch.randperm(vocab, generator=generator)[:tokens]
        teacher, theta = torch.full((vocab,), -torch.inf), normal(6)
        teacher[allowed] = normal(6, tokens)
        return teacher, theta

    def without(row: torch.Tensor, share: float) -> torch.Tensor:
        return torch.where(torch.rand(vocab, generator=generator) < share, -torch.inf, row)

    def halves(height: float) -> Pair:
        side = torch.where(torch.arange(vocab) < vocab // 2, height, -height)
        return side + normal(1), -side + normal(1)

    def made() -> dict[str, Pair]:
        base = normal(2.5)
        ordinary = base + normal(1), base + normal(1)
        far = base + normal(3), base + normal(3)
        equal = normal(3)
        return {
            "ordinary": ordinary,
            "far": far,
            "near_one_hot": (peaks(25, 3), peaks(18, 3)),
            "agree_on_one_token": (peaks(60, 3), peaks(40, 3)),
            "disjoint_peaks": (peaks(25, 3), peaks(20, 5)),
            "disjoint_peaks_50": (peaks(50, 3), peaks(40, 5)),
            "one_token_missing_in_theta": (peaks(15, 3), peaks(-60, 3)),
            "flat": (normal(0.01), normal(0.01)),
            "flat_and_peak": (torch.zeros(vocab), peaks(25, 5, 0.0)),
            "equal_rows": (equal, equal),
            "equal_but_for_shift": (equal + 30, equal - 20),
            "rows_of_equal_logits": (torch.full((vocab,), 3.0), torch.full((vocab,), -2.0)),
            "uniform_80": (
                torch.rand(vocab, generator=generator) * 160 - 80,
                torch.rand(vocab, generator=generator) * 160 - 80,
            ),
            "halves_40": halves(40),
            "halves_80": halves(80),
            "bf16_ties": ((base + normal(1)).bfloat16().float(), (base + normal(1)).bfloat16().float()),
            "shifted_far": (ordinary[0] + 300, ordinary[1] - 300),
            "grammar_1": masked(1),
            "grammar_2": masked(2),
            "grammar_10": masked(10),
            "minus_inf_in_teacher": (without(ordinary[0], 0.5), ordinary[1]),
            "minus_inf_in_theta": (ordinary[0], without(ordinary[1], 0.5)),
            "minus_inf_in_both": (without(far[0], 0.4), without(far[1], 0.4)),
            "finite_masks": (ordinary[0], torch.where(base > 2, -1e9, ordinary[1])),
        }

    result: dict[str, list[Pair]] = {}
    for _ in range(3):
        for name, pair in made().items():
            result.setdefault(name, []).append((pair[0].float(), pair[1].float()))
    return result
