"""Artificial pairs of clouds of which it is known whether they can be aligned, for `benchmarks.population`.

Every kind is a function ``kind(rng, num_rows) -> (source, target)`` of rows ``[num_rows, 128]``, row i with row i. All
have the same width, so that their fits share compiled programs; clouds of fewer dimensions are embedded in it. There
are three groups:

* ``ALIGNABLE``: the shape of the cloud determines the map, and true pairs find each other under it.
* ``AMBIGUOUS``: the true map exists, but another map is as good: the cloud has a symmetry. Even a map that happens to
  be right must not be called aligned.
* ``WRONG``: the clouds share nothing, or too little for rows to find their partners.
"""

from collections.abc import Callable

import numpy as np

DIMS = 128

Kind = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


# -------------------------------------------------------------------------------------------------------- what they use


def rotation(rng: np.random.Generator, dims: int = DIMS) -> np.ndarray:
    """A random rotation ``[dims, dims]``."""
    return np.linalg.qr(rng.normal(size=(dims, dims)))[0]


def turned(rng: np.random.Generator, rows: np.ndarray, noise: float) -> np.ndarray:
    """Rows after a random rotation, with noise of ``noise`` times their own length, as coloured as they are."""
    spectrum, directions = np.linalg.eigh(np.cov(rows.T))
    coloured = rng.normal(size=rows.shape) * np.sqrt(np.maximum(spectrum, 0)) @ directions.T
    plain = rng.normal(size=rows.shape) * rows.std()
    return (rows + noise * (coloured + plain) / np.sqrt(2)) @ rotation(rng, rows.shape[1])


def embed(rng: np.random.Generator, rows: np.ndarray, noise: float = 0.01) -> np.ndarray:
    """Rows of a few dimensions in random directions of the full width, with a little noise."""
    wide = np.zeros((rows.shape[0], DIMS))
    wide[:, : rows.shape[1]] = rows
    return wide @ rotation(rng) + noise * rows.std() * rng.normal(size=wide.shape)


def zipf(rng: np.random.Generator, num: int, num_rows: int, power: float = 1.0) -> np.ndarray:
    """Numbers of the blobs of ``num_rows`` rows; sizes follow Zipf's law."""
    sizes = 1 / np.arange(1, num + 1) ** power
    return rng.choice(num, num_rows, p=sizes / sizes.sum())


def spectrum(power: float, dims: int = DIMS) -> np.ndarray:
    """Standard deviations that fall by a power law."""
    return np.arange(1, dims + 1) ** -power


def blobs(rng: np.random.Generator, num: int, num_rows: int, width: float = 0.5, power: float = 1.0) -> np.ndarray:
    """Round blobs around random centres."""
    centers = rng.normal(size=(num, DIMS)) * spectrum(0.3)
    return centers[zipf(rng, num, num_rows, power)] + width * rng.normal(size=(num_rows, DIMS)) * spectrum(0.3)


def dictionary(rng: np.random.Generator, num_rows: int, atoms: int = 400, words: int = 8) -> np.ndarray:
    """Rows are sums of a few atoms of a dictionary, frequent and rare ones, as texts are made of words."""
    vectors = rng.normal(size=(atoms, DIMS)) * spectrum(0.4)
    drawn = np.stack([zipf(rng, atoms, num_rows, 0.8) for _ in range(words)], axis=1)
    weights = rng.gamma(1.0, size=drawn.shape)
    return np.einsum("nw,nwd->nd", weights, vectors[drawn])


def factor_mixture(rng: np.random.Generator, num: int, num_rows: int) -> np.ndarray:
    """A mixture in which every component has directions and tails of its own."""
    which = zipf(rng, num, num_rows, 0.7)
    centers = rng.normal(size=(num, DIMS)) * spectrum(0.4)
    loadings = rng.normal(size=(num, 6, DIMS)) * spectrum(0.4) * 0.4
    factors = rng.exponential(size=(num_rows, 6)) - 0.5
    return centers[which] + np.einsum("nf,nfd->nd", factors, loadings[which])


def hierarchy(rng: np.random.Generator, num_rows: int, topics: int = 12, branches: int = 12) -> np.ndarray:
    """Topics, subtopics, and texts of skewed lengths within them."""
    top = rng.normal(size=(topics, DIMS)) * spectrum(0.5)
    sub = rng.normal(size=(topics, branches, DIMS)) * spectrum(0.3) * 0.6
    topic, branch = zipf(rng, topics, num_rows, 0.5), zipf(rng, branches, num_rows, 0.5)
    return top[topic] + sub[topic, branch] + 0.4 * dictionary(rng, num_rows, 200, 4)


# ------------------------------------------------------------------------------------------------------------ alignable


def _noisy_dictionary(noise: float, **settings) -> Kind:
    def kind(rng, num_rows):
        rows = dictionary(rng, num_rows, **settings)
        return rows, turned(rng, rows, noise)

    return kind


def _noisy_mixture(noise: float, num: int) -> Kind:
    def kind(rng, num_rows):
        rows = factor_mixture(rng, num, num_rows)
        return rows, turned(rng, rows, noise)

    return kind


def _noisy_hierarchy(noise: float) -> Kind:
    def kind(rng, num_rows):
        rows = hierarchy(rng, num_rows)
        return rows, turned(rng, rows, noise)

    return kind


def _skewed_axes(rng, num_rows):
    rows = rng.exponential(size=(num_rows, DIMS)) * spectrum(0.4)
    return rows, turned(rng, rows, 0.2)


def _bent(rng, num_rows):
    """The target is a nonlinear function of the source."""
    rows = dictionary(rng, num_rows)
    rows /= rows.std()
    wide = np.maximum(rows @ rng.normal(size=(DIMS, 512)) / np.sqrt(DIMS), 0)
    return rows, wide @ rng.normal(size=(512, DIMS)) / np.sqrt(512)


ALIGNABLE: dict[str, Kind] = {
    "dictionary, noise 0.2": _noisy_dictionary(0.2),
    "dictionary, noise 0.5": _noisy_dictionary(0.5),
    "small dictionary": _noisy_dictionary(0.3, atoms=150, words=4),
    "factor mixture of 40": _noisy_mixture(0.3, 40),
    "factor mixture of 200": _noisy_mixture(0.4, 200),
    "hierarchy": _noisy_hierarchy(0.3),
    "skewed axes": _skewed_axes,
    "bent dictionary": _bent,
}


# ------------------------------------------------------------------------------------------------------------ ambiguous


def _mirrored(make: Callable[[np.random.Generator, int], np.ndarray]) -> Kind:
    """A cloud that is symmetric under x to -x."""

    def kind(rng, num_rows):
        rows = make(rng, num_rows) * rng.choice([-1, 1], size=(num_rows, 1))
        return rows, turned(rng, rows, 0.2)

    return kind


def _mirrored_axis(rng, num_rows):
    """Only the strongest direction is symmetric."""
    rows = dictionary(rng, num_rows)
    directions = np.linalg.eigh(np.cov(rows.T))[1]
    rows = (rows - rows.mean(0)) @ directions
    rows[:, -1] *= rng.choice([-1, 1], size=num_rows)
    return rows, turned(rng, rows, 0.2)


def _twin_blocks(rng, num_rows):
    """Two independent blocks of the same law: exchanging them changes nothing."""
    half = dictionary(rng, 2 * num_rows)[:, : DIMS // 2]
    rows = np.concatenate([half[:num_rows], half[num_rows:]], axis=1)
    return rows, turned(rng, rows, 0.2)


def _ring(rng, num_rows):
    angle = rng.uniform(0, 2 * np.pi, num_rows)
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return embed(rng, rows), embed(rng, rows)


def _torus(rng, num_rows):
    angles = rng.uniform(0, 2 * np.pi, (num_rows, 2))
    rows = np.concatenate([np.cos(angles), np.sin(angles) * 1.0], axis=1) * [1, 0.6, 1, 0.6]
    return embed(rng, rows), embed(rng, rows)


def _grid(dims: int) -> Kind:
    def kind(rng, num_rows):
        side = round(num_rows ** (1 / dims)) + 1
        axes = np.meshgrid(*[np.linspace(-1, 1, side)] * dims)
        points = np.stack([axis.ravel() for axis in axes], axis=1)
        rows = points[rng.choice(len(points), num_rows, replace=len(points) < num_rows)]
        return embed(rng, rows), embed(rng, rows)

    return kind


def _closed_curve(rng, num_rows):
    """A ring in many harmonics: every turn of it is a symmetry."""
    angle = rng.uniform(0, 2 * np.pi, (num_rows, 1))
    order = np.arange(1, 31)
    rows = np.concatenate([np.cos(angle * order), np.sin(angle * order)], axis=1) / np.tile(order**0.5, 2)
    return embed(rng, rows, 0.05), embed(rng, rows, 0.05)


def _hypercube(rng, num_rows):
    rows = rng.choice([-1.0, 1.0], size=(num_rows, 40)) * spectrum(0.3, 40)
    return embed(rng, rows, 0.2), embed(rng, rows, 0.2)


def _laplace_axes(rng, num_rows):
    rows = rng.laplace(size=(num_rows, DIMS)) * spectrum(0.4)
    return rows, turned(rng, rows, 0.2)


def _one_hot(power: float, noise: float) -> Kind:
    def kind(rng, num_rows):
        rows = np.eye(DIMS)[zipf(rng, DIMS, num_rows, power)]
        return (
            rows + noise * rng.normal(size=rows.shape) / np.sqrt(DIMS),
            rows @ rotation(rng) + noise * rng.normal(size=rows.shape) / np.sqrt(DIMS),
        )

    return kind


AMBIGUOUS: dict[str, Kind] = {
    "mirrored dictionary": _mirrored(dictionary),
    "mirrored factor mixture": _mirrored(lambda rng, n: factor_mixture(rng, 100, n)),
    "mirrored hierarchy": _mirrored(hierarchy),
    "mirrored axis": _mirrored_axis,
    "twin blocks": _twin_blocks,
    "ring": _ring,
    "torus": _torus,
    "closed curve": _closed_curve,
    "grid of 2 dimensions": _grid(2),
    "grid of 3 dimensions": _grid(3),
    "hypercube": _hypercube,
    "Laplace axes": _laplace_axes,
    "one-hot, uniform": _one_hot(0, 0),
    "one-hot, Zipf, noise": _one_hot(1.0, 0.3),
}


# ---------------------------------------------------------------------------------------------------------------- wrong


def _unrelated(make: Callable[[np.random.Generator, int], np.ndarray]) -> Kind:
    """Two independent draws of the same kind of cloud."""
    return lambda rng, num_rows: (make(rng, num_rows), make(rng, num_rows) @ rotation(rng))


def _blob_only(num: int, width: float) -> Kind:
    """Rows share their blob, and nothing within it."""

    def kind(rng, num_rows):
        centers = rng.normal(size=(num, DIMS)) * spectrum(0.3)
        centers = centers[zipf(rng, num, num_rows, 0.5)]
        return tuple(
            (centers + width * rng.normal(size=centers.shape) * spectrum(0.3)) @ turn
            for turn in (np.eye(DIMS), rotation(rng))
        )

    return kind


def _few_distinct(num: int, noise: float = 0.0) -> Kind:
    def kind(rng, num_rows):
        rows = dictionary(rng, num)[rng.choice(num, num_rows)]
        return rows + noise * rng.normal(size=rows.shape), turned(rng, rows, 0) + noise * rng.normal(size=rows.shape)

    return kind


def _swapped_blocks(make: Callable[[np.random.Generator, int], np.ndarray]) -> Kind:
    """Two independent blocks; the variance that one of them has here, the other has there."""

    def kind(rng, num_rows):
        first, second = make(rng, num_rows)[:, : DIMS // 2], make(rng, num_rows)[:, : DIMS // 2]
        first, second = first / first.std(), second / second.std()
        source = np.concatenate([3 * first, second], axis=1)
        return source, np.concatenate([first, 3 * second], axis=1) @ rotation(rng)

    return kind


def _gaussian(power: float) -> Kind:
    def kind(rng, num_rows):
        rows = rng.normal(size=(num_rows, DIMS)) * spectrum(power)
        return rows, rows @ rotation(rng)

    return kind


def _elliptic(rng, num_rows):
    rows = rng.normal(size=(num_rows, DIMS)) * spectrum(0.4) / np.sqrt(rng.chisquare(4, size=(num_rows, 1)))
    return rows, rows @ rotation(rng)


def _permuted(make: Callable[[np.random.Generator, int], np.ndarray]) -> Kind:
    """The values of every coordinate are shuffled among the rows."""

    def kind(rng, num_rows):
        rows = make(rng, num_rows)
        shuffled = np.stack([rng.permutation(column) for column in rows.T], axis=1)
        return rows, shuffled @ rotation(rng)

    return kind


def _other_texts(num: int, width: float, *, per_topic: bool) -> Kind:
    """Topics correspond; their texts have a geometry of their own on each side, for every topic or for all of them."""

    def kind(rng, num_rows):
        centers = rng.normal(size=(num, DIMS)) * spectrum(0.4)
        which = zipf(rng, num, num_rows, 0.5)
        sides = []
        for turn in (np.eye(DIMS), rotation(rng)):
            texts = dictionary(rng, num_rows)
            texts = (texts - texts.mean(0)) / texts.std() * centers.std() * width
            if per_topic:
                local = np.stack([rotation(rng) for _ in range(num)])
                texts = np.einsum("nd,nde->ne", texts, local[which])
            sides.append((centers[which] + texts) @ turn)
        return tuple(sides)

    return kind


def _many_topics_other_words(num: int) -> Kind:
    """Enough topics to determine the map, and texts of other words on both sides."""

    def kind(rng, num_rows):
        centers = rng.normal(size=(num, DIMS)) * spectrum(0.4)
        topics = centers[zipf(rng, num, num_rows, 0.5)]
        return tuple(
            (topics + 0.2 * dictionary(rng, num_rows, 200, 3)) @ turn for turn in (np.eye(DIMS), rotation(rng))
        )

    return kind


WRONG: dict[str, Kind] = {
    "unrelated blobs, 20": _unrelated(lambda rng, n: blobs(rng, 20, n)),
    "unrelated blobs, 60": _unrelated(lambda rng, n: blobs(rng, 60, n)),
    "unrelated blobs, 300": _unrelated(lambda rng, n: blobs(rng, 300, n)),
    "unrelated tight blobs, 30": _unrelated(lambda rng, n: blobs(rng, 30, n, 0.1)),
    "unrelated dictionaries": _unrelated(dictionary),
    "unrelated factor mixtures": _unrelated(lambda rng, n: factor_mixture(rng, 60, n)),
    "unrelated hierarchies": _unrelated(hierarchy),
    "blob only, 20": _blob_only(20, 0.5),
    "blob only, 100": _blob_only(100, 0.5),
    "blob only, 500": _blob_only(500, 0.7),
    "30 distinct rows": _few_distinct(30),
    "300 distinct rows": _few_distinct(300),
    "30 distinct rows, noise": _few_distinct(30, 0.05),
    "swapped blocks, dictionaries": _swapped_blocks(dictionary),
    "swapped blocks, mixtures": _swapped_blocks(lambda rng, n: factor_mixture(rng, 60, n)),
    "Gaussian, round": _gaussian(0.0),
    "Gaussian, steep": _gaussian(0.7),
    "elliptic": _elliptic,
    "permuted dictionary": _permuted(dictionary),
    "permuted hierarchy": _permuted(hierarchy),
    "topics only, 3": _other_texts(3, 0.6, per_topic=True),
    "topics only, 20": _other_texts(20, 0.6, per_topic=True),
    "topics, other texts, 3": _other_texts(3, 0.6, per_topic=False),
    "topics, other texts, 30": _other_texts(30, 0.6, per_topic=False),
    "topics, other words, 60": _many_topics_other_words(60),
    "topics, other words, 200": _many_topics_other_words(200),
}
