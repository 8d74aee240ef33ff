"""Every p-value in the project: one-sided, exact or a proven upper bound, as log10.

Functions named after a law return log10 P(sum ≥ the value seen); 0.0 means "nothing seen". A float in gives a float
out, an array in the last argument gives an array. None is ever above 0 or infinite, and none is a z-test. The
`saddlepoint_*` functions are approximations to look at beside a bound: no p-value is ever reported from them.
"""

from spiritsafe.pvalue._bounds import (
    saddlepoint_bernoullis,
    saddlepoint_exponentials,
    weighted_bernoullis,
    weighted_exponentials,
)
from spiritsafe.pvalue._evalue import coin_evalue, coin_process, from_evalues, merge_evalues
from spiritsafe.pvalue._exact import binomial, gamma
from spiritsafe.pvalue._interval import clopper_pearson
from spiritsafe.pvalue._matches import matches
from spiritsafe.pvalue._multiplicity import benjamini_hochberg, bonferroni, holm, rank
from spiritsafe.pvalue._ranks import decibans, rank_sum
from spiritsafe.pvalue._sums import gamma_sum
from spiritsafe.pvalue._tilted import tilted_evalue

__all__ = [
    "benjamini_hochberg",
    "binomial",
    "bonferroni",
    "clopper_pearson",
    "coin_evalue",
    "coin_process",
    "decibans",
    "from_evalues",
    "gamma",
    "gamma_sum",
    "holm",
    "matches",
    "merge_evalues",
    "rank",
    "rank_sum",
    "saddlepoint_bernoullis",
    "saddlepoint_exponentials",
    "tilted_evalue",
    "weighted_bernoullis",
    "weighted_exponentials",
]
