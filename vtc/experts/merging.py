"""Experts that make alike outputs, merged into one each."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage

from vtc.errors import InputError
from vtc.experts.statistics import Floats, Numbers

Linkage = Literal["average", "single", "complete"]


def cluster_experts(features: Floats, clusters: int, method: Linkage = "average") -> Numbers:
    """Cluster experts whose mean outputs are near each other.

    Parameters
    ----------
    features : array of shape (E, D)
        Mean output of each expert over all tokens, routed to it or not.
    clusters : int
    method : {"average", "single", "complete"}
        How far two clusters are apart: mean, least or largest Euclidean distance of their members.

    Returns
    -------
    array of shape (E,), int64
        Cluster of each expert, numbered in the order of their first experts.

    Notes
    -----
    Based on HC-SMoE (arXiv 2410.08589), which takes ``average``. Its code joins the farthest clusters where it is
    asked for ``complete``; here the nearest are joined.
    """
    experts = len(features)
    if not 1 <= clusters <= experts:
        raise InputError(f"{experts} experts cannot be merged into {clusters}; 1 to {experts} are possible")
    found = cut_tree(linkage(features, method), clusters)[:, 0] if experts > 1 else np.zeros(1, np.int64)
    _, first, label = np.unique(found, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[label], np.int64)


def cluster_shares(labels: Numbers, frequency: Floats) -> Floats:
    """Share of each expert in the weights of its cluster's, by how often it is chosen.

    The router stays: what chose an expert now chooses its cluster.

    Parameters
    ----------
    labels : array of shape (E,), int64
        Cluster of each expert, from 0.
    frequency : array of shape (E,)
        Tokens that chose it. Experts of a cluster that no token chose count alike.

    Returns
    -------
    array of shape (clusters, E)
        Rows sum to 1; 0 where an expert is of another cluster.
    """
    members = labels == np.arange(labels.max() + 1)[:, None]
    share = members * frequency
    share = np.where(share.sum(axis=1, keepdims=True) > 0, share, members)
    return np.asarray(share / share.sum(axis=1, keepdims=True))
