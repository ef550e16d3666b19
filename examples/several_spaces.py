"""Make maps between several spaces consistent, and see how far each of them agrees with the others.

python examples/several_spaces.py [--data FOLDER] [--rows N]

The spaces are MiniLM, WordLlama, and WordLlama after a random rotation. Four spaces or more are better: in a single
triangle of maps that contradict each other, any of the three may be the wrong one.
"""

import itertools

import jax
import jax.numpy as jnp
from common import load_rows, make_parser, print_table, random_rotation

from mv2v_jax import Config, Synchronized, align, evaluate, synchronize


def main(arguments: list[str] | None = None) -> Synchronized:
    """Fit a map per pair, synchronise them and print how far they agree."""
    options = make_parser(__doc__).parse_args(arguments)
    data = load_rows(options)
    turn = random_rotation(data.y.shape[1], data.y.shape[1]).astype(data.y.dtype)
    spaces = {"minilm": data.x, "turned": data.y @ turn, "wordllama": data.y}
    held_out = {"minilm": data.x_eval, "turned": data.y_eval @ turn, "wordllama": data.y_eval}

    maps = {
        (a, b): align(jax.random.key(0), spaces[a], spaces[b], Config.fast()).map
        for a, b in itertools.combinations(spaces, 2)
    }
    # Every ordered pair of spaces has a map afterwards, whether it was fitted or not.
    found = synchronize(maps)

    def top1(linear_map, pair):
        x, y = (jnp.asarray(held_out[name]) for name in pair)
        return f"{evaluate(linear_map, x, y).top1:.3f}"

    print_table(
        f"maps between {len(spaces)} spaces, evaluated on {len(data.x_eval):,} texts",
        ["agreement", "cycle residual", "called wrong", "top-1, fitted", "top-1, synchronised"],
        [
            [
                " to ".join(pair),
                f"{found.agreement[pair]:.3f}",
                f"{found.cycle_residual[pair]:.3f}",
                "yes" if found.wrong[pair] else "no",
                top1(maps[pair], pair),
                top1(found.maps[pair], pair),
            ]
            for pair in maps
        ],
    )
    return found


if __name__ == "__main__":
    main()
