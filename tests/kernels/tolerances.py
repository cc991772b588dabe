"""How close the kernels come to float64, and why not closer. The only numbers that the kernel tests compare with."""

KL_GAP = 1e-3
"""Nats, |D_KL(q || theta) - D_KL(q || teacher)|. The requirement. alpha is accepted at half of it, with the bound of its
error (`interpolate.KL_TOLERANCE`). Where one ulp of alpha moves the gap by more (r deviates by more than 130 nats), that is
what float32 can do: `disagreement.judge`."""

TOTAL_VARIATION = 1e-4
"""TV(q, q*) at the reference's alpha. The requirement; alpha is accepted at half of it (`interpolate.TV_OF_DEVIATION`,
`settle.CLOSED`). The largest of 100,000 rows is in tests/reliability/results/alpha_rows.json."""

TOTAL_VARIATION_ENTROPY = 1e-3
"""For alpha = H_theta / (H_theta + H_teacher): it does not look at q, so nothing makes q insensitive to it. An
entropy of float32 sums has 1e-7 of absolute error, and near-disjoint rows multiply alpha's by up to 200 nats."""

CERTAIN_ROWS = 1e-5
"""Nats: rows of less entropy than this in all count as certain: float32 keeps a probability of 1 - 1e-8 as 1, so..."""

ALPHA_OF_CERTAIN_ROWS = 0.1
"""...alpha by entropy is judged itself there, and only to this."""

NORMALISED = 1e-4
"""|log sum q|: the rounding of logits, 4e-6 at 80 and 2e-5 at 300, and of interpolation, which is less."""

NORMALISED_RELATIVE = 1.2e-7
"""And this part of the logits of the tokens that have mass, two roundings of each: 6e-4 where they are at -5,000."""

KL_RELATIVE = 5e-4
"""Divergences in the record, relative to 1 + the divergence: as far off as alpha may be, and not further."""

KL_RELATIVE_AWAY = 2e-3
"""The same where alpha is not at the root, so that the divergences, unlike there, move with it to first order, and the
slope between two nodes is known to a little less than 1e-3."""

LOG_PROBABILITY = 2e-4
"""log q, log teacher, log theta of one token: rounding of logits of 80 and normalisers, plus what `KL_GAP` leaves of
alpha."""

SAME_DISTRIBUTION = 2e-4
"""TV between two launch shapes: each is within `TOTAL_VARIATION` of q*."""

SHIFTED = 5e-5
"""TV after adding up to 100 to a row: the rounding of the shifted logits themselves, 8e-6, times a mean |r| of a
few."""
