"""How close the kernels come to float64, and why not closer. The only numbers that the kernel tests compare with."""

KL_GAP = 1e-3
"""Nats, |D_KL(q || theta) - D_KL(q || teacher)|. The requirement; most rows reach 2e-4, which is where the solver stops
(`tilt.CUBIC_TOLERANCE`, its error on 1,200 rows of 14 families is at most 4e-4)."""

KL_GAP_80 = 2e-3
"""The same where both rows reach from -80 to 80 with their peaks apart. There g rises by 25,000 nats per unit of alpha
and a logit's own rounding, 4e-6, moves g by 6e-4."""

TOTAL_VARIATION = 1e-4
"""TV(q, q*) at the reference's alpha. The requirement."""

TOTAL_VARIATION_ENTROPY = 1e-3
"""For alpha = H_theta / (H_theta + H_teacher): it does not look at q, so nothing makes q insensitive to it. An
entropy of float32 sums has 1e-7 of absolute error, and near-disjoint rows multiply alpha's by up to 200 nats."""

CERTAIN_ROWS = 1e-5
"""Nats: rows of less entropy than this in all count as certain: float32 keeps a probability of 1 - 1e-8 as 1, so..."""

ALPHA_OF_CERTAIN_ROWS = 0.1
"""...alpha by entropy is judged itself there, and only to this."""

NORMALISED = 3e-4
"""|log sum q|. log Z is interpolated in a cell of at most 1/4 with a slope that may be off by 4e-4 in its middle; at an
alpha that is a node, and at most others, what is left is the rounding of logits, 4e-6 at 80 and 2e-5 at 300."""

NORMALISED_80 = 1e-3
"""The same for the rows of `KL_GAP_80`, whose last cell is 1/128: the quintic is off by as much between its ends."""

KL_RELATIVE = 5e-4
"""Divergences in the record, relative to 1 + the divergence: as far off as alpha may be, and not further."""

KL_RELATIVE_AWAY = 2e-3
"""The same where alpha is not at the root, so that the divergences, unlike there, move with it to first order, and the
slope between two nodes is known to a little less than 1e-3; and for the rows of `KL_GAP_80`."""

LOG_PROBABILITY = 2e-4
"""log q, log teacher, log theta of one token: rounding of logits of 80 and normalisers, plus what `KL_GAP` leaves of
alpha."""

SAME_DISTRIBUTION = 2e-4
"""TV between two launch shapes: each is within `TOTAL_VARIATION` of q*."""

SHIFTED = 5e-5
"""TV after adding up to 100 to a row: the rounding of the shifted logits themselves, 8e-6, times a mean |r| of a
few."""
